package domain

import (
	"testing"

	"libvirt.org/go/libvirtxml"
)

// A share does not get a slot that the image's domain uses.
func TestShareAddress(t *testing.T) {
	zero, slot := uint(0), uint(0x10)
	d := &libvirtxml.Domain{
		OS: &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64"}},
		Devices: &libvirtxml.DomainDeviceList{Interfaces: []libvirtxml.DomainInterface{{
			Address: &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{Bus: &zero, Slot: &slot}},
		}}},
	}
	for want := uint(0x11); want <= 0x12; want++ {
		AddCacheShare(d, "/share", "label")
		if got := *d.Devices.Filesystems[len(d.Devices.Filesystems)-1].Address.PCI.Slot; got != want {
			t.Errorf("got slot %#x, want %#x", got, want)
		}
	}
}
