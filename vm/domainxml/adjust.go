package domainxml

import (
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// SetCPUs gives a domain n vCPUs. It removes a topology with another number, which libvirt
// would reject.
func SetCPUs(d *libvirtxml.Domain, n uint) {
	d.VCPU = &libvirtxml.DomainVCPU{Placement: "static", Value: n}
	d.VCPUs = nil
	if d.CPU != nil {
		d.CPU.Topology = topology(d.CPU.Topology, n)
		d.CPU.Numa = nil
	}
}

// SetMemory gives a domain that many bytes of memory, rounded down to KiB.
func SetMemory(d *libvirtxml.Domain, bytes uint64) {
	kib := uint(bytes >> 10)
	d.Memory = &libvirtxml.DomainMemory{Value: kib, Unit: "KiB"}
	d.CurrentMemory = nil
	d.MaximumMemory = nil
	if d.CPU != nil {
		d.CPU.Numa = nil
	}
}

// UseKVM makes a domain run on KVM. A domain without a CPU model gets the host's.
func UseKVM(d *libvirtxml.Domain) {
	d.Type = "kvm"
	if d.CPU == nil {
		d.CPU = &libvirtxml.DomainCPU{}
	}
	if d.CPU.Mode == "" && d.CPU.Model == nil {
		d.CPU.Mode = "host-passthrough"
	}
}

// UseTCG makes a domain run without KVM, on an emulated CPU. It removes what needs KVM: the
// host's CPU model, Hyper-V enlightenments, KVM's features and clocks.
//
// Disks of virtio get no ioeventfd. With it, another thread of QEMU starts each request,
// and firmware that waits for the disk keeps the emulated CPU busy until that thread had its
// turn: on a busy host a boot takes a third more processor time until its kernel runs.
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
		// Both need KVM's split I/O APIC.
		d.Devices.IOMMU.Driver.IntRemap, d.Devices.IOMMU.Driver.EIM = "", ""
	}
	startRequestsAtOnce(d)
	if d.Clock != nil {
		d.Clock.Timer = slices.DeleteFunc(slices.Clone(d.Clock.Timer), func(t libvirtxml.DomainTimer) bool {
			return t.Name == "kvmclock" || t.Name == "hypervclock" || t.Name == "tsc"
		})
	}
}

func startRequestsAtOnce(d *libvirtxml.Domain) {
	if d.Devices == nil {
		return
	}
	for i := range d.Devices.Disks {
		disk := &d.Devices.Disks[i]
		if disk.Target == nil || disk.Target.Bus != "virtio" {
			continue
		}
		if disk.Driver == nil {
			disk.Driver = &libvirtxml.DomainDiskDriver{}
		}
		disk.Driver.IOEventFD = "off"
	}
}

// emulates reports whether QEMU can emulate a CPU model completely. It cannot emulate vendors'
// models, and libvirt would refuse to start them.
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

// emulatedCPU is the replacement for a real CPU model. On amd64 it is QEMU's own model with the
// features of x86-64-v2, which RHEL 9 and its derivatives require. Mode maximum would also
// work, but such a guest cannot be saved. On arm64 QEMU's default is a 32-bit CPU.
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
	default: // QEMU's default works
		if cpu.Topology == nil {
			return nil
		}
		return &libvirtxml.DomainCPU{Topology: cpu.Topology}
	}
	return cpu
}
