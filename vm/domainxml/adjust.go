package domainxml

import (
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// SetCPUs gives a domain n vCPUs. A topology that says otherwise goes: libvirt
// accepts none that does not multiply to n.
func SetCPUs(d *libvirtxml.Domain, n uint) {
	d.VCPU = &libvirtxml.DomainVCPU{Placement: "static", Value: n}
	d.VCPUs = nil
	if d.CPU != nil {
		d.CPU.Topology = topology(d.CPU.Topology, n)
		d.CPU.Numa = nil
	}
}

// SetMemory gives a domain so many bytes of memory, all of it at once. They are
// rounded down to KiB, which is what libvirt counts in.
func SetMemory(d *libvirtxml.Domain, bytes uint64) {
	kib := uint(bytes >> 10)
	d.Memory = &libvirtxml.DomainMemory{Value: kib, Unit: "KiB"}
	d.CurrentMemory = nil
	d.MaximumMemory = nil
	if d.CPU != nil {
		d.CPU.Numa = nil
	}
}

// UseKVM runs a domain on the host's processor. A domain without a CPU gets the
// host's.
func UseKVM(d *libvirtxml.Domain) {
	d.Type = "kvm"
	if d.CPU == nil {
		d.CPU = &libvirtxml.DomainCPU{}
	}
	if d.CPU.Mode == "" && d.CPU.Model == nil {
		d.CPU.Mode = "host-passthrough"
	}
}

// UseTCG runs a domain without KVM, on QEMU's emulated processor. What only KVM
// can do, or libvirt accepts only with it, goes: the host's CPU in a guest,
// Hyper-V enlightenments, KVM's features and clocks.
func UseTCG(d *libvirtxml.Domain) {
	d.Type = "qemu"
	if !emulates(d.CPU) {
		d.CPU = emulatedCPU(d)
	}
	if f := d.Features; f != nil {
		f.HyperV, f.KVM, f.PVSpinlock, f.IOAPIC, f.MSRS = nil, nil, nil, nil, nil
		if f.GIC != nil && f.GIC.Version == "host" {
			f.GIC = nil
		}
	}
	if d.Devices != nil && d.Devices.IOMMU != nil && d.Devices.IOMMU.Driver != nil {
		// Both need the split I/O APIC, which is KVM's.
		d.Devices.IOMMU.Driver.IntRemap, d.Devices.IOMMU.Driver.EIM = "", ""
	}
	if d.Clock != nil {
		d.Clock.Timer = slices.DeleteFunc(slices.Clone(d.Clock.Timer), func(t libvirtxml.DomainTimer) bool {
			return t.Name == "kvmclock" || t.Name == "hypervclock" || t.Name == "tsc"
		})
	}
}

// emulates says whether QEMU has all of a CPU without the host's help. Of the
// models that bear a vendor's name it has not, and libvirt would refuse to start.
func emulates(cpu *libvirtxml.DomainCPU) bool {
	if cpu == nil {
		return false
	}
	switch cpu.Mode {
	case "host-passthrough", "host-model":
		return false
	case "maximum":
		return true
	}
	return cpu.Model != nil && (strings.HasPrefix(cpu.Model.Value, "qemu") || strings.HasPrefix(cpu.Model.Value, "cortex-") ||
		cpu.Model.Value == "max")
}

// emulatedCPU is the CPU of a guest that was made for a real one. On amd64 it is
// QEMU's own model plus what x86-64-v2 adds, below which the C library of RHEL 9
// and its kin does not start. Mode maximum would do as well, but a guest that has
// it cannot be saved. On arm64 QEMU's default would be a 32-bit CPU.
func emulatedCPU(d *libvirtxml.Domain) *libvirtxml.DomainCPU {
	cpu := &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Check: "none"}
	if d.CPU != nil {
		cpu.Topology = d.CPU.Topology
	}
	arch := ""
	if d.OS != nil && d.OS.Type != nil {
		arch = d.OS.Type.Arch
	}
	switch arch {
	case "x86_64":
		cpu.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: "qemu64"}
		for _, f := range []string{"ssse3", "sse4.1", "sse4.2", "popcnt"} {
			cpu.Features = append(cpu.Features, libvirtxml.DomainCPUFeature{Policy: "require", Name: f})
		}
	case "aarch64":
		cpu.Model = &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: "cortex-a57"}
	default: // QEMU's default serves
		if cpu.Topology == nil {
			return nil
		}
		return &libvirtxml.DomainCPU{Topology: cpu.Topology}
	}
	return cpu
}
