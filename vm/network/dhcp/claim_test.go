package dhcp

import (
	"net/netip"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt/virttest"
)

// Two drivers that do not see each other's lock start machines with one address: each notices.
func TestCheckSole(t *testing.T) {
	h := virttest.OpenEmpty(t)
	r := &Reservation{Address: netip.MustParseAddr("192.168.123.10"), MAC: "52:54:00:aa:bb:01"}
	for _, test := range []struct {
		machine, mac string
		sole         bool
	}{
		{"own", r.MAC, true},
		{"neighbour", "52:54:00:aa:bb:02", true},
		{"twin", strings.ToUpper(r.MAC), false},
	} {
		dom := virttest.Start(t, h, &libvirtxml.Domain{Name: test.machine, Devices: &libvirtxml.DomainDeviceList{
			Interfaces: []libvirtxml.DomainInterface{{MAC: &libvirtxml.DomainInterfaceMAC{Address: test.mac},
				Source: &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}}}}})
		dom.Free()
		err := r.CheckSole(t.Context(), h)
		if (err == nil) != test.sole {
			t.Errorf("with %s running: %v", test.machine, err)
		}
		if err != nil && (!strings.Contains(err.Error(), r.Address.String()) || !strings.Contains(err.Error(), r.MAC)) {
			t.Errorf("the error does not name the address: %v", err)
		}
	}
}
