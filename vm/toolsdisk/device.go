package toolsdisk

import (
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
)

const (
	// alias of the disk in libvirt.
	alias = "ua-sardine-tools"
	// Serial number of the disk in the guest.
	Serial = "sardine-tools"
)

// AttachedTo reports whether a domain has a tools disk.
func AttachedTo(d *libvirtxml.Domain) bool { return slices.ContainsFunc(d.Devices.Disks, isTools) }

// Detach removes the tools disk from a domain.
func Detach(d *libvirtxml.Domain) {
	d.Devices.Disks = slices.DeleteFunc(d.Devices.Disks, isTools)
}

func isTools(device libvirtxml.DomainDisk) bool {
	return device.Alias != nil && device.Alias.Name == alias
}

// Attach adds the disk to a domain, after the disks of the image, so that these keep their
// names in the guest. It is on the bus of the first disk, for which the guest has a driver.
// A guest that runs Windows gets it as a CD-ROM: only then Windows gives it a drive letter.
// Attach does nothing if there is no disk, the machine has another architecture, or the bus
// has no room for another disk.
//
// All machines share the file, which everyone may read: the system's libvirt is told not to
// change its owner. system is false for the daemon of a user, which knows no owners.
func (t *Disk) Attach(d *libvirtxml.Domain, system bool) {
	if t == nil || t.Architecture != "" && (d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch != t.Architecture) {
		return
	}
	device, bus := "disk", busOf(d)
	if t.Windows {
		device = "cdrom"
		if bus != "ide" {
			bus = "sata" // the board has it; Windows has no driver for virtio-scsi
		}
	}
	target := disk.FreeTarget(d, map[string]string{"virtio": "vd", "ide": "hd"}[bus])
	for i := range d.Devices.Disks {
		if disk.TargetName(&d.Devices.Disks[i]) == target {
			return
		}
	}
	source := &libvirtxml.DomainDiskSourceFile{File: t.Path}
	if system {
		source.SecLabel = []libvirtxml.DomainDeviceSecLabel{{Model: "dac", Relabel: "no"}}
	}
	d.Devices.Disks = append(d.Devices.Disks, libvirtxml.DomainDisk{
		Device:   device,
		Driver:   &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw"},
		Source:   &libvirtxml.DomainDiskSource{File: source},
		Target:   &libvirtxml.DomainDiskTarget{Dev: target, Bus: bus},
		ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		Serial:   Serial,
		Alias:    &libvirtxml.DomainAlias{Name: alias},
	})
}

// busOf returns the bus of the first hard disk.
func busOf(d *libvirtxml.Domain) string {
	for _, disk := range d.Devices.Disks {
		if disk.Device != "cdrom" && disk.Device != "floppy" && disk.Target != nil && disk.Target.Bus != "" {
			return disk.Target.Bus
		}
	}
	if d.OS != nil && d.OS.Type != nil && strings.Contains(d.OS.Type.Machine, "q35") {
		return "sata"
	}
	return "virtio"
}
