package vm

import (
	"errors"

	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/seed"
)

// A Spec describes a machine to start.
type Spec struct {
	// Name of the domain; unique on the host.
	Name string

	// DomainXML is the domain that the image brings; nil means the default
	// machine. It is not trusted: [domainxml.Rebuild] keeps what can do no harm.
	DomainXML []byte
	// Trusted lets DomainXML bring more (an admin's decision, never an image's).
	Trusted bool
	// Template is the path of an administrator's own domain XML, in place of the
	// image's; empty for none. It is trusted. A disk names a disk of the image as
	// its source, or has no source: then it gets the next that is left.
	Template string
	// Architecture in Go's terms, for the default machine; empty means the
	// host's.
	Architecture string
	// UEFI boots the default machine from UEFI firmware instead of a BIOS.
	UEFI bool

	// Disks of the image. Those that no other disk backs onto become the
	// machine's; each gets an overlay, CD-ROMs are shared.
	Disks []disk.Disk

	// CPUs and Memory (bytes) replace what the image asks for unless 0.
	CPUs   uint
	Memory uint64
	// MaxCPUs and MaxMemory (bytes) bound both what the image asks for and what
	// replaces it; 0 means what the host has.
	MaxCPUs   uint
	MaxMemory uint64
	// DiskSize is the least size of the first disk, in bytes: its overlay grows, and
	// never shrinks.
	DiskSize int64

	// Network is "user" or the name of a libvirt network.
	Network string
	// Accel is "kvm", "tcg", or "auto" (and empty): KVM where it works.
	Accel string

	// CloneDir is the directory for overlays. It must be on a file system that
	// the QEMU process can reach; overlays lie in CloneDir/Name and are unlinked
	// as soon as QEMU holds them open.
	CloneDir string
	// JobDir is the directory for what belongs to this one machine and must
	// outlive the process: secrets, the console log. [Start] creates it, 0700.
	JobDir string

	// SnapshotDir is where the snapshots of the image lie, if it has some: [Start]
	// makes machines of them, [MakeSnapshot] makes them. It must be on the file system of
	// CloneDir, and belong to this image alone. Empty: machines boot.
	SnapshotDir string

	// OmitBackingStore says whether the domain's XML leaves it to libvirt to find
	// out what the overlays stand on: OmitAuto (and empty), OmitYes or OmitNo.
	OmitBackingStore string

	// SSHPort is where the guest's SSH server listens; 0 means 22.
	SSHPort int

	// Seed tells the guest, while it boots, how we log in; nil if its image does.
	Seed *seed.Seed

	// Cache is what the machine shares with earlier and later ones; nil for none.
	Cache *cache.Config

	// Admission says when the host has room for the machine.
	Admission admission.Policy

	// Record goes into the domain's metadata.
	Record record.Record
}

// What can go wrong with a machine, as far as somebody decides on it.
var (
	// ErrGuestStopped: the guest stopped, crashed or paused by itself.
	ErrGuestStopped = errors.New("the guest stopped")
	// ErrNoAnswer: the guest runs, but its SSH server did not answer in time.
	ErrNoAnswer = errors.New("the guest does not answer")
	// ErrSpec: the machine that was asked for cannot be: an unknown network, a
	// missing program, a value out of range.
	ErrSpec = errdefs.ErrInvalid
)

func (s *Spec) source() domain.Source {
	return domain.Source{
		DomainXML: s.DomainXML, Trusted: s.Trusted, Template: s.Template, Architecture: s.Architecture, UEFI: s.UEFI, Disks: s.Disks,
	}
}

func (s *Spec) size() domain.Size {
	return domain.Size{CPUs: s.CPUs, Memory: s.Memory, MaxCPUs: s.MaxCPUs, MaxMemory: s.MaxMemory}
}
