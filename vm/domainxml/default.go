package domainxml

import (
	"cmp"
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/defaultmachine"
)

// DefaultOptions describe the machine of an image without domain XML.
type DefaultOptions struct {
	// Arch is Go's (amd64, arm64) or libvirt's (x86_64, aarch64) name; empty is
	// amd64.
	Arch string
	// UEFI requests UEFI firmware, which arm64 always has.
	UEFI bool
	// Disks in boot order. ISO images are CD-ROM drives.
	Disks []DefaultDisk
}

// A DefaultDisk is a disk of a machine without domain XML.
type DefaultDisk struct {
	Disk
	CDROM bool
}

// Default returns the domain of an image without domain XML: q35 (virt for arm64), virtio disks
// and network card, random number generator, guest agent channel, serial console. As with
// [Rebuild], the caller sets name, UUID, MAC address, network and CPU model.
func Default(opts DefaultOptions) (*libvirtxml.Domain, error) {
	board, ok := defaultmachine.BoardFor(cmp.Or(opts.Arch, "amd64"))
	if !ok {
		return nil, refuse("os/type/@arch", "there is no default machine for %q, only for amd64 and arm64: the image needs domain XML of its own", text(opts.Arch))
	}
	arch := board.Arch
	if len(opts.Disks) == 0 || len(opts.Disks) > maxDisks-4 {
		return nil, refuse("devices/disk", "a machine needs between 1 and %d disks, the image has %d", maxDisks-4, len(opts.Disks))
	}
	d := &libvirtxml.Domain{
		Type:       "kvm",
		OS:         &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm", Arch: arch, Machine: board.Machine}},
		Features:   &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}},
		Clock:      &libvirtxml.DomainClock{Offset: "utc"},
		OnPoweroff: "destroy",
		OnReboot:   "restart",
		OnCrash:    "destroy",
		Devices:    defaultDevices(arch),
	}
	if opts.UEFI || board.UEFI {
		d.OS.Firmware = "efi"
	}
	if arch == "x86_64" {
		d.Features.APIC = &libvirtxml.DomainFeatureAPIC{}
	}
	SetCPUs(d, defaultmachine.CPUs)
	SetMemory(d, defaultmachine.Memory)
	var disks, drives int
	for n, disk := range opts.Disks {
		if err := disk.check(); err != nil {
			return nil, err
		}
		def := libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: disk.Format},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: disk.Name}},
			Boot:   &libvirtxml.DomainDeviceBoot{Order: uint(n + 1)},
		}
		if disk.CDROM {
			def.Device, def.ReadOnly = "cdrom", &libvirtxml.DomainDiskReadOnly{}
			def.Target = &libvirtxml.DomainDiskTarget{Dev: diskName("sd", drives), Bus: cdromBus(arch)}
			drives++
		} else {
			def.Target = &libvirtxml.DomainDiskTarget{Dev: diskName("vd", disks), Bus: "virtio"}
			disks++
		}
		d.Devices.Disks = append(d.Devices.Disks, def)
	}
	return d, nil
}

func defaultDevices(arch string) *libvirtxml.DomainDeviceList {
	d := &libvirtxml.DomainDeviceList{
		Interfaces: []libvirtxml.DomainInterface{{
			Source: unplugged(), Model: &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		}},
		Serials:    []libvirtxml.DomainSerial{{Source: pty()}},
		Consoles:   []libvirtxml.DomainConsole{{Source: pty(), Target: &libvirtxml.DomainConsoleTarget{Type: "serial", Port: ptr(uint(0))}}},
		Channels:   []libvirtxml.DomainChannel{*agentChannel()},
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio"},
		RNGs:       []libvirtxml.DomainRNG{*randomness("virtio")},
	}
	if arch == "x86_64" { // many boot loaders need a display before they use a serial port
		d.Videos = []libvirtxml.DomainVideo{{Model: libvirtxml.DomainVideoModel{Type: "vga"}}}
	}
	return d
}

// cdromBus is SATA on q35; virt has no SATA controller.
func cdromBus(arch string) string {
	if arch == "aarch64" {
		return "scsi"
	}
	return "sata"
}

// diskName counts vda, vdb, … vdz, vdaa.
func diskName(prefix string, n int) string {
	var s strings.Builder
	s.WriteString(prefix)
	if n >= 26 {
		s.WriteByte('a')
		n -= 26
	}
	fmt.Fprintf(&s, "%c", 'a'+n)
	return s.String()
}
