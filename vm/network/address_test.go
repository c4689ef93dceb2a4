package network

import (
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

func TestBestAddress(t *testing.T) {
	nic := func(mac string, addresses ...string) virt.Interface {
		return virt.Interface{MAC: mac, Addresses: addresses}
	}
	const ours = "52:54:00:11:22:33"
	for _, test := range []struct {
		name string
		nics []virt.Interface
		want string
	}{
		{"nothing", nil, ""},
		{"lease", []virt.Interface{nic(ours, "192.168.122.5")}, "192.168.122.5"},
		{"IPv6 only", []virt.Interface{nic(ours, "2001:db8::5")}, "2001:db8::5"},
		{"both", []virt.Interface{nic(ours, "2001:db8::5", "192.168.122.5")}, "192.168.122.5"},
		{"link-local", []virt.Interface{nic(ours, "fe80::5054:ff:fe11:2233", "169.254.3.4")}, ""},
		{"an agent's list", []virt.Interface{
			nic("00:00:00:00:00:00", "127.0.0.1", "::1"), nic("02:42:ac:11:00:01", "172.17.0.1"), nic("52:54:00:AA:bb:cc", "10.0.0.9"),
		}, "10.0.0.9"},
		{"what is no address", []virt.Interface{nic(ours, "", "x; rm -rf", "0.0.0.0", "224.0.0.1")}, ""},
	} {
		if got := bestAddress(test.nics); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestFilterFor(t *testing.T) {
	mac := &libvirtxml.NetworkMAC{Address: "52:54:00:00:00:01"}
	dhcp := &libvirtxml.NetworkDHCP{}
	v6 := libvirtxml.NetworkIP{Family: "ipv6", Address: "fd00::1", Prefix: 64, DHCP: dhcp}
	for _, test := range []struct {
		name string
		mac  *libvirtxml.NetworkMAC
		ips  []libvirtxml.NetworkIP
		want *guestFilter
	}{
		{"netmask", mac, []libvirtxml.NetworkIP{{Address: "192.168.122.1", Netmask: "255.255.255.0", DHCP: dhcp}},
			&guestFilter{"192.168.122.1", mac.Address, "192.168.122.0", "255.255.255.0"}},
		{"prefix, and IPv6", mac, []libvirtxml.NetworkIP{v6, {Address: "10.9.20.1", Prefix: 20, DHCP: dhcp}},
			&guestFilter{"10.9.20.1", mac.Address, "10.9.16.0", "255.255.240.0"}},
		{"IPv6 only", mac, []libvirtxml.NetworkIP{v6}, nil},
		{"no DHCP", mac, []libvirtxml.NetworkIP{{Address: "192.168.122.1", Prefix: 24}}, nil},
		{"two networks", mac, []libvirtxml.NetworkIP{{Address: "10.1.0.1", Prefix: 24, DHCP: dhcp}, {Address: "10.2.0.1", Prefix: 24}}, nil},
		{"another program's bridge", nil, nil, nil},
	} {
		got := filterFor(&libvirtxml.Network{MAC: test.mac, IPs: test.ips})
		if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}
