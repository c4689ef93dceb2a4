package domain

import (
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestLeaveSlots(t *testing.T) {
	six := uint(6)
	for machine, want := range map[string]bool{"pc-q35-7.2": true, "virt-7.2": true, "pc-i440fx-7.2": false, "": false} {
		d := &libvirtxml.Domain{
			OS:      &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Machine: machine}},
			Devices: &libvirtxml.DomainDeviceList{Controllers: []libvirtxml.DomainController{{Type: "pci", Model: "pcie-root-port", Index: &six}}},
		}
		LeaveSlots(d)
		added := d.Devices.Controllers[1:]
		if (len(added) > 0) != want {
			t.Errorf("machine %q: %d ports", machine, len(added))
		}
		for i, port := range added {
			if *port.Index != uint(7+i) {
				t.Errorf("port %d has the index %d", i, *port.Index)
			}
		}
	}
	LeaveSlots(&libvirtxml.Domain{})
}
