package vm

import (
	"time"

	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/place"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/toolsdisk"
)

// A Spec describes a machine to start.
type Spec struct {
	// Name of the domain; unique on the host.
	Name string
	// Source of its domain and disks.
	domain.Source
	// Size of the machine.
	domain.Size
	// Place of its files.
	Place
	// SnapshotDir is the directory for snapshots of the image: [MakeSnapshot] creates
	// them, and [Start] resumes machines from them. It must be on the file system of
	// OverlayDir and belong to this image alone. If it is empty, machines boot.
	SnapshotDir string

	// KeepOverlays leaves the overlays until [removal.Remove]: see [Started.Overlays].
	KeepOverlays bool

	// Network is "user" or the name of a libvirt network.
	Network string
	// HostAccess lets a guest on the user network reach this host at the host's own address.
	HostAccess bool
	// SSHPort is the port of the guest's SSH server; 0 means 22.
	SSHPort int
	// LoginGrace is how long a login may be refused after the first answer of the SSH
	// server: the guest may set its users while it boots.
	LoginGrace time.Duration
	// Seed gives the guest a login while it boots; nil if its image has one.
	Seed *seed.Seed
	// Cache to attach; nil for none.
	Cache *cache.Config
	// CacheLater leaves a slot for a cache disk: see [Claim].
	CacheLater bool
	// Tools is the disk with programs of this host; nil for none. A machine of another
	// architecture does not get it.
	Tools *toolsdisk.Disk
	// Admission decides when the host has room for the machine.
	Admission admission.Policy
	// Record is stored in the metadata of the domain. [Start] adds the host key, the
	// cache and the addresses.
	Record record.Record
}

// A Place is where a machine has its files.
type Place = place.Place

// ConsoleFile is the log of the guest's serial console, in the job directory.
const ConsoleFile = place.ConsoleFile
