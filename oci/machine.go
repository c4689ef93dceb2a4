package oci

import "context"

// A Machine is a virtual machine of this host that is shut off, as the source of an image.
type Machine struct {
	// DomainXML names the disks as Disks do.
	DomainXML []byte
	// Architecture is Go's name.
	Architecture string
	Disks        []MachineDisk
}

// A MachineDisk is a disk of a [Machine]. Its header names its backing files.
type MachineDisk struct {
	// Path of the file on this host, Name in the image.
	Path, Name string
	// Format is "qcow2" or "raw".
	Format string
	CDROM  bool
}

// Machines describes a virtual machine of this host by its name. The error is [ErrNotFound] if
// there is none of that name, and [ErrFormat] if it is not shut off or cannot be an image.
type Machines func(ctx context.Context, name string) (*Machine, error)
