package domain

import (
	"cmp"
	"fmt"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

// A Size is the size of a machine, and its limits.
type Size struct {
	// CPUs and Memory (bytes) override those of the image unless they are 0.
	CPUs   uint
	Memory uint64
	// MaxCPUs and MaxMemory (bytes) limit both the image's values and the overrides; 0 means
	// those of the host.
	MaxCPUs   uint
	MaxMemory uint64
	// DiskSize is the minimum size of the first disk, in bytes. An overlay never shrinks.
	DiskSize int64
}

// Resize overrides the size of the image.
func (s Size) Resize(d *libvirtxml.Domain) {
	if s.CPUs > 0 {
		domainxml.SetCPUs(d, s.CPUs)
	}
	if s.Memory > 0 {
		domainxml.SetMemory(d, s.Memory)
	}
}

// Limit applies the limits, also to the image's own values. hostCPUs and hostMemory (bytes)
// are what the host can give, and the limits where s has none. It returns a note on each value
// that it reduced.
func (s Size) Limit(d *libvirtxml.Domain, hostCPUs uint, hostMemory uint64) (notes []string) {
	if most := cmp.Or(s.MaxCPUs, hostCPUs); d.VCPU != nil && d.VCPU.Value > most {
		notes = append(notes, fmt.Sprintf("the machine gets %d CPUs, not %d: that is the limit here", most, d.VCPU.Value))
		domainxml.SetCPUs(d, most)
	}
	if most := cmp.Or(s.MaxMemory, hostMemory); Memory(d) > most {
		notes = append(notes, fmt.Sprintf("the machine gets %d MiB of memory, not %d: that is the limit here", most>>20, Memory(d)>>20))
		domainxml.SetMemory(d, most)
	}
	return notes
}

// Memory returns the memory of a domain, in bytes; package domainxml writes KiB.
func Memory(d *libvirtxml.Domain) uint64 {
	if d.Memory == nil {
		return 0
	}
	return uint64(d.Memory.Value) << 10
}
