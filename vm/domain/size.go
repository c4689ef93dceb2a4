package domain

import (
	"cmp"
	"fmt"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

// A Size is what a machine has, and may have.
type Size struct {
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
}

// Resize gives a machine the size that is asked for in place of the image's.
func (s Size) Resize(d *libvirtxml.Domain) {
	if s.CPUs > 0 {
		domainxml.SetCPUs(d, s.CPUs)
	}
	if s.Memory > 0 {
		domainxml.SetMemory(d, s.Memory)
	}
}

// Limit keeps a machine below the limits, whoever asked for more: an image can ask for
// anything. hostCPUs and hostMemory (bytes) are what the host has. It says what it cut.
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

// Memory is the memory of a domain in bytes; package domainxml writes KiB.
func Memory(d *libvirtxml.Domain) uint64 {
	if d.Memory == nil {
		return 0
	}
	return uint64(d.Memory.Value) << 10
}
