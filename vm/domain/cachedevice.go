package domain

import (
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
)

// AddCacheDisk adds the cache disk after the disks of the image, so that these keep their
// names in the guest. Unlike these, it outlives the machine, so the guest's flushes reach
// the disk of the host. Its format is named because guests write arbitrary data to it. If
// the disk of the host is full, the guest gets an I/O error and continues without saving
// its cache; by default, libvirt would pause it.
func AddCacheDisk(d *libvirtxml.Domain, path, label string) {
	d.Devices.Disks = append(d.Devices.Disks, libvirtxml.DomainDisk{
		Device: "disk",
		Driver: &libvirtxml.DomainDiskDriver{
			Name: "qemu", Type: "raw", Cache: "writeback", ErrorPolicy: "report", Discard: "unmap", DetectZeros: "unmap",
		},
		Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}},
		Target: &libvirtxml.DomainDiskTarget{Dev: disk.FreeTarget(d, "vd"), Bus: "virtio"},
		Serial: label,
		Alias:  &libvirtxml.DomainAlias{Name: "ua-sardine-cache"},
	})
}

// AddCacheShare adds the cache directory. virtiofsd accesses the memory of the guest, which
// therefore must be shared memory.
func AddCacheShare(d *libvirtxml.Domain, path, label string) {
	if d.MemoryBacking == nil {
		d.MemoryBacking = &libvirtxml.DomainMemoryBacking{}
	}
	d.MemoryBacking.MemorySource = &libvirtxml.DomainMemorySource{Type: "memfd"}
	d.MemoryBacking.MemoryAccess = &libvirtxml.DomainMemoryAccess{Mode: "shared"}
	d.Devices.Filesystems = append(d.Devices.Filesystems, libvirtxml.DomainFilesystem{
		Driver:  &libvirtxml.DomainFilesystemDriver{Type: "virtiofs"},
		Source:  &libvirtxml.DomainFilesystemSource{Mount: &libvirtxml.DomainFilesystemSourceMount{Dir: path}},
		Target:  &libvirtxml.DomainFilesystemTarget{Dir: label},
		Address: shareAddress(d),
	})
}

// shareAddress returns a free slot on the root bus. By default libvirt assigns slots to file
// systems before network cards, and a guest that names its card after the slot (enp1s0)
// would not find it. On machines without PCI it returns nil, and libvirt assigns the
// address.
func shareAddress(d *libvirtxml.Domain) *libvirtxml.DomainAddress {
	if d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch == "s390x" {
		return nil
	}
	taken := explicitRootSlots(d)
	// libvirt uses slots below 0x10, the chip set those above 0x1a.
	for slot := uint(0x10); slot <= 0x1a; slot++ {
		if !taken[slot] {
			zero := uint(0)
			return &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{Domain: &zero, Bus: &zero, Slot: &slot, Function: &zero}}
		}
	}
	return nil
}

// explicitRootSlots returns the slots of bus 0 that the domain uses explicitly.
func explicitRootSlots(d *libvirtxml.Domain) map[uint]bool {
	taken := make(map[uint]bool)
	note := func(a *libvirtxml.DomainAddress) {
		if a != nil && a.PCI != nil && a.PCI.Slot != nil && (a.PCI.Bus == nil || *a.PCI.Bus == 0) {
			taken[*a.PCI.Slot] = true
		}
	}
	for _, x := range d.Devices.Controllers {
		note(x.Address)
	}
	for _, x := range d.Devices.Disks {
		note(x.Address)
	}
	for _, x := range d.Devices.Interfaces {
		note(x.Address)
	}
	for _, x := range d.Devices.Inputs {
		note(x.Address)
	}
	for _, x := range d.Devices.Videos {
		note(x.Address)
	}
	for _, x := range d.Devices.Sounds {
		note(x.Address)
	}
	for _, x := range d.Devices.RNGs {
		note(x.Address)
	}
	for _, x := range d.Devices.Filesystems {
		note(x.Address)
	}
	for _, x := range d.Devices.Hostdevs {
		note(x.Address)
	}
	if balloon := d.Devices.MemBalloon; balloon != nil {
		note(balloon.Address)
	}
	if dog := d.Devices.Watchdogs; len(dog) > 0 {
		note(dog[0].Address)
	}
	return taken
}

// LeaveSlots adds PCIe ports to a machine that has no other slots where a cache disk can be
// plugged in while it runs. libvirt adds as many ports as a domain has devices. It gives the
// devices the first of the ports that are there, so that the last ones stay free.
func LeaveSlots(d *libvirtxml.Domain) {
	if d.OS == nil || d.OS.Type == nil {
		return
	}
	machine := d.OS.Type.Machine
	if !strings.Contains(machine, "q35") && !strings.HasPrefix(machine, "virt") {
		return // a PCI bus has slots
	}
	devices := len(d.Devices.Disks) + len(d.Devices.Interfaces) + len(d.Devices.Controllers) + len(d.Devices.RNGs) +
		len(d.Devices.Channels) + len(d.Devices.Inputs) + len(d.Devices.Videos) + len(d.Devices.Sounds)
	next := uint(1) // 0 is the root
	for _, c := range d.Devices.Controllers {
		if c.Type == "pci" && c.Index != nil {
			next = max(next, *c.Index+1)
		}
	}
	for n := range uint(devices) + extraPorts {
		index := next + n
		d.Devices.Controllers = append(d.Devices.Controllers, libvirtxml.DomainController{Type: "pci", Model: "pcie-root-port", Index: &index})
	}
}

// extraPorts is more than the devices that libvirt adds: memory balloon, USB, serial.
const extraPorts = 4
