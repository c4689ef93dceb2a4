package domainxml_test

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

func TestSetCPUs(t *testing.T) {
	four := &libvirtxml.DomainCPUTopology{Sockets: 1, Cores: 2, Threads: 2}
	for _, c := range []struct {
		name string
		n    uint
		keep bool
	}{
		{"as the topology says", 4, true},
		{"fewer", 2, false},
		{"more", 8, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &libvirtxml.Domain{
				VCPU: &libvirtxml.DomainVCPU{Value: 4, Current: 1},
				CPU:  &libvirtxml.DomainCPU{Topology: four, Numa: &libvirtxml.DomainNuma{}},
			}
			domainxml.SetCPUs(d, c.n)
			if d.VCPU.Value != c.n || d.VCPU.Current != 0 {
				t.Errorf("vcpu is %+v, want %d", d.VCPU, c.n)
			}
			if kept := d.CPU.Topology != nil; kept != c.keep {
				t.Errorf("topology kept: %v, want %v", kept, c.keep)
			}
			if d.CPU.Numa != nil {
				t.Error("NUMA cells name vCPUs that may be gone")
			}
		})
	}
}

func TestSetMemory(t *testing.T) {
	d := &libvirtxml.Domain{
		Memory:        &libvirtxml.DomainMemory{Value: 1, Unit: "GiB"},
		CurrentMemory: &libvirtxml.DomainCurrentMemory{Value: 512, Unit: "MiB"},
		MaximumMemory: &libvirtxml.DomainMaxMemory{Value: 4, Unit: "GiB"},
	}
	domainxml.SetMemory(d, 3<<30+1000)
	if d.Memory.Value != 3<<20 || d.Memory.Unit != "KiB" {
		t.Errorf("memory is %+v, want 3 GiB in KiB", d.Memory)
	}
	if d.CurrentMemory != nil || d.MaximumMemory != nil {
		t.Error("the guest would get another amount than was set")
	}
}

func TestAccelerators(t *testing.T) {
	hostCPU := []string{"host-passthrough", "host-model"}
	onlyKVM := append([]string{"hyperv", "<kvm>", "kvmclock", "hypervclock"}, hostCPU...)
	for _, file := range documents(t) {
		if strings.HasSuffix(file, "macos.xml") {
			continue
		}
		t.Run(file, func(t *testing.T) {
			opts := domainxml.Options{Disks: layers}
			d := rebuildFile(t, file, opts).Domain
			domainxml.UseTCG(d)
			out := marshal(t, d)
			for _, no := range onlyKVM {
				if strings.Contains(out, no) {
					t.Errorf("an emulated machine has %s", no)
				}
			}
			if d.Type != "qemu" || d.CPU == nil {
				t.Errorf("type %q, CPU %+v", d.Type, d.CPU)
			}

			d = rebuildFile(t, file, opts).Domain
			cpu := d.CPU
			domainxml.UseKVM(d)
			if d.Type != "kvm" || (cpu != nil && d.CPU != cpu) {
				t.Errorf("type %q, CPU %+v, want the image's", d.Type, d.CPU)
			}
		})
	}
}

func TestEmulatedCPU(t *testing.T) {
	model := func(mode, model string) *libvirtxml.DomainCPU {
		return &libvirtxml.DomainCPU{Mode: mode, Model: &libvirtxml.DomainCPUModel{Value: model}}
	}
	for _, c := range []struct {
		name, arch string
		cpu        *libvirtxml.DomainCPU
		want       string
		features   int
	}{
		{"none", "x86_64", nil, "qemu64", 4},
		{"the host's", "x86_64", &libvirtxml.DomainCPU{Mode: "host-passthrough"}, "qemu64", 4},
		{"one of a vendor", "x86_64", model("custom", "Cascadelake-Server"), "qemu64", 4},
		{"QEMU's own", "x86_64", model("custom", "qemu64"), "qemu64", 0},
		{"the host's, arm64", "aarch64", &libvirtxml.DomainCPU{Mode: "host-passthrough"}, "cortex-a57", 0},
		{"QEMU's own, arm64", "aarch64", model("custom", "cortex-a72"), "cortex-a72", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &libvirtxml.Domain{OS: &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: c.arch}}, CPU: c.cpu}
			domainxml.UseTCG(d)
			if d.CPU.Model.Value != c.want || len(d.CPU.Features) != c.features {
				t.Errorf("CPU is %+v with %d features, want %s with %d", d.CPU.Model, len(d.CPU.Features), c.want, c.features)
			}
		})
	}
	d := &libvirtxml.Domain{}
	domainxml.UseKVM(d)
	if d.CPU == nil || d.CPU.Mode != "host-passthrough" {
		t.Errorf("without a CPU of its own a machine on KVM has %+v, want the host's", d.CPU)
	}
}

func TestMachineNames(t *testing.T) {
	for _, name := range []string{
		"q35", "pc", "virt", "pc-q35-7.2", "pc-i440fx-2.11", "pc-i440fx-rhel7.6.0", "pc-q35-rhel9.4.0", "pc-i440fx-jammy",
		"pc-q35-noble-v2", "pc-i440fx-focal-hpb", "virt-8.1", "virt-rhel9.2.0", "s390-ccw-virtio-9.0", "pseries-8.2",
	} {
		doc := domain{osType: `<type arch="x86_64" machine="` + name + `">hvm</type>`}.String()
		if _, err := domainxml.Rebuild([]byte(doc), domainxml.Options{Disks: layers}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"xenpv", "isapc", "none", "/etc/canary", "q35,", "q35 ", "pc-q35-7.2\n", "canary.example"} {
		doc := domain{osType: `<type arch="x86_64" machine="` + name + `">hvm</type>`}.String()
		_, err := domainxml.Rebuild([]byte(doc), domainxml.Options{Disks: layers})
		wantRefused(t, err, "os/type/@machine")
	}
}

// Only disks of virtio have the attribute: libvirt refuses it for others.
func TestEmulatedDisks(t *testing.T) {
	disk := func(bus string) libvirtxml.DomainDisk {
		return libvirtxml.DomainDisk{Target: &libvirtxml.DomainDiskTarget{Bus: bus}}
	}
	d := &libvirtxml.Domain{Devices: &libvirtxml.DomainDeviceList{
		Disks: []libvirtxml.DomainDisk{disk("virtio"), disk("sata"), disk("scsi"), {}},
	}}
	domainxml.UseTCG(d)
	if driver := d.Devices.Disks[0].Driver; driver == nil || driver.IOEventFD != "off" {
		t.Errorf("the disk of virtio: %+v", driver)
	}
	for _, other := range d.Devices.Disks[1:] {
		if other.Driver != nil {
			t.Errorf("a disk that is not one of virtio: %+v", other)
		}
	}
}
