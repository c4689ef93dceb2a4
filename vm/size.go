package vm

import (
	"cmp"
	"context"
	"fmt"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

// resize gives a machine the size that its spec asks for in place of the image's.
func resize(d *libvirtxml.Domain, spec *Spec) {
	if spec.CPUs > 0 {
		domainxml.SetCPUs(d, spec.CPUs)
	}
	if spec.Memory > 0 {
		domainxml.SetMemory(d, spec.Memory)
	}
}

// bound keeps a machine below the limits of its spec, whoever asked for more: an
// image can ask for anything. It says what it cut.
func (h *Host) bound(ctx context.Context, d *libvirtxml.Domain, spec *Spec) ([]string, error) {
	host, err := h.Size(ctx)
	if err != nil {
		return nil, err
	}
	var notes []string
	if most := cmp.Or(spec.MaxCPUs, host.CPUs); d.VCPU != nil && d.VCPU.Value > most {
		notes = append(notes, fmt.Sprintf("the machine gets %d CPUs, not %d: that is the limit here", most, d.VCPU.Value))
		domainxml.SetCPUs(d, most)
	}
	if most := cmp.Or(spec.MaxMemory, host.Memory); memoryOf(d) > most {
		notes = append(notes, fmt.Sprintf("the machine gets %d MiB of memory, not %d: that is the limit here", most>>20, memoryOf(d)>>20))
		domainxml.SetMemory(d, most)
	}
	return notes, nil
}

// memoryOf is the memory of a domain in bytes; package domainxml writes KiB.
func memoryOf(d *libvirtxml.Domain) uint64 {
	if d.Memory == nil {
		return 0
	}
	return uint64(d.Memory.Value) << 10
}
