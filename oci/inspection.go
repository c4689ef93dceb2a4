package oci

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// An Inspection describes an image by its manifest and small layers. The content of its disks
// is only known after a pull.
type Inspection struct {
	Reference string `json:"reference"`
	// Digest of the manifest, and of the index that led to it, if one did.
	Digest digest.Digest `json:"digest"`
	Index  digest.Digest `json:"index,omitempty"`
	// Format is the name of the recognized format. Evidence lists the facts in the manifest.
	Format       string    `json:"format"`
	Evidence     []string  `json:"evidence"`
	Architecture string    `json:"architecture,omitempty"`
	OS           string    `json:"os,omitempty"`
	Created      time.Time `json:"created,omitzero"`
	// Size is the maximum transfer of a pull, in bytes.
	Size  int64           `json:"size"`
	Disks []InspectedDisk `json:"disks"`
	// Guest is the VM config; fields that the image does not set are empty.
	Guest GuestConfig `json:"guest"`
	// DomainXML is the untrusted libvirt domain XML of the image; nil if it has none.
	DomainXML []byte `json:"-"`
}

// An InspectedDisk is a disk as the manifest describes it.
type InspectedDisk struct {
	// Name of the file; empty if only the content shows it.
	Name string `json:"name,omitempty"`
	// Content is "qcow2", "raw" or "iso"; empty if only the content shows it.
	Content string `json:"content,omitempty"`
	// Layers is the number of layers of the disk, and Compressed their size in bytes.
	Layers     int   `json:"layers"`
	Compressed int64 `json:"compressed"`
	// Size of the file in bytes, and its digest, if the manifest has them.
	Size   int64         `json:"size,omitempty"`
	Digest digest.Digest `json:"digest,omitempty"`
}
