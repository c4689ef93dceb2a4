package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// planIn returns the plan of a network with that <dhcp>.
func planIn(t *testing.T, dhcp string) *Plan {
	t.Helper()
	n := &libvirtxml.Network{}
	err := n.Unmarshal(`<network><name>net</name><uuid>1adb7f1c-345c-41db-b3b6-377882a61115</uuid><bridge name="br"/>
<mac address="52:54:00:45:D3:EC"/><ip family="ipv6" address="fd00::1" prefix="64"/><ip address="192.168.123.1" netmask="255.255.255.0">` + dhcp + `</ip></network>`)
	if err != nil {
		t.Fatal(err)
	}
	return PlanOf(n)
}

func TestPlanOf(t *testing.T) {
	for _, none := range []string{"", "<dhcp/>", `<dhcp><host mac="52:54:00:00:00:01" ip="192.168.123.4"/></dhcp>`,
		`<dhcp><range start="192.168.123.9" end="192.168.123.2"/></dhcp>`} {
		if p := planIn(t, none); p != nil {
			t.Errorf("%q: %+v", none, p)
		}
	}
	p := planIn(t, `<dhcp><range start="192.168.123.2" end="192.168.123.4"/><range start="192.168.123.254" end="192.168.123.255"/>
<host mac="52:54:00:00:00:0A" ip="192.168.123.3"/><host name="nameless" ip="192.168.123.99"/></dhcp>`)
	if p == nil || p.index != 1 || p.bridge != "br" || p.gatewayMAC != "52:54:00:45:d3:ec" || p.size() != 5 {
		t.Fatalf("%+v", p)
	}
	var all []string
	for n := range p.size() {
		all = append(all, p.at(n).String())
	}
	if got := strings.Join(all, " "); got != "192.168.123.2 192.168.123.3 192.168.123.4 192.168.123.254 192.168.123.255" {
		t.Errorf("its addresses are %s", got)
	}
	if p.hosts[netip.MustParseAddr("192.168.123.3")] != "52:54:00:00:00:0a" {
		t.Errorf("reserved: %v", p.hosts)
	}
}

// Each address of a network has its own MAC address, which has QEMU's prefix and differs
// between networks.
func TestMACOfAnAddress(t *testing.T) {
	p := planIn(t, `<dhcp><range start="192.168.0.0" end="192.168.255.255"/></dhcp>`)
	seen := map[string]bool{}
	for n := range p.size() {
		mac := p.macOf(p.at(n))
		if !strings.HasPrefix(mac, "52:54:00:") || seen[mac] {
			t.Fatalf("%s has %s", p.at(n), mac)
		}
		seen[mac] = true
	}
	other := *p
	other.uuid = "another"
	if a := p.at(0); other.macOf(a) == p.macOf(a) {
		t.Error("two networks have the same MAC addresses")
	}
}

func TestCandidates(t *testing.T) {
	p := planIn(t, `<dhcp><range start="192.168.123.1" end="192.168.123.9"/></dhcp>`)
	at := func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("192.168.123.%d", n)) }
	const foreign = "52:54:00:ff:ff:ff"
	p.hosts[at(2)], p.hosts[at(3)], p.hosts[at(4)] = foreign, p.macOf(at(3)), p.macOf(at(4))
	use := addressUse{
		leases:     map[netip.Addr]string{at(4): foreign, at(5): p.macOf(at(5)), at(6): foreign},
		neighbours: map[netip.Addr]string{at(7): foreign, at(8): p.macOf(at(8))},
		running:    map[string]int{p.macOf(at(9)): 1},
	}
	for _, machine := range []string{"one", "two", "three", "sardine-0123abcd-1"} {
		got := p.candidates(machine, use)
		if want := []netip.Addr{at(3), at(5), at(8), at(7)}; !slices.Equal(got, want) {
			t.Errorf("%s can have %v, want %v", machine, got, want)
		}
	}
	err := p.full(use).Error()
	if want := "of the 9 that its DHCP server assigns, machines of jobs have 3, 1 are reserved for others and 1 are leased to others"; !strings.Contains(err, want) {
		t.Errorf("%q does not say %q", err, want)
	}

	wide := planIn(t, `<dhcp><range start="192.168.0.1" end="192.168.255.254"/></dhcp>`)
	one, two := wide.candidates("one", addressUse{}), wide.candidates("two", addressUse{})
	if len(one) != candidatesMax || one[0] == two[0] {
		t.Errorf("two machines begin with %s and %s of %d", one[0], two[0], len(one))
	}
	// A reserved address is always found.
	far := wide.at((offset("one") + wide.size()/2) % wide.size())
	wide.hosts[far] = wide.macOf(far)
	if got := wide.candidates("one", addressUse{}); got[0] != far {
		t.Errorf("%s comes before %s, which is reserved", got[0], far)
	}
}

func TestIsScarce(t *testing.T) {
	p := planIn(t, `<dhcp><range start="192.168.123.10" end="192.168.123.13"/></dhcp>`)
	p.hosts[netip.MustParseAddr("192.168.123.10")] = "a"
	p.hosts[netip.MustParseAddr("192.168.123.99")] = "not of the range"
	leases := map[netip.Addr]string{netip.MustParseAddr("192.168.123.11"): "b"}
	if p.isScarce(addressUse{leases: leases}) {
		t.Error("two of four are scarce")
	}
	leases[netip.MustParseAddr("192.168.123.12")] = "c"
	if !p.isScarce(addressUse{leases: leases}) {
		t.Error("one of four is not scarce")
	}
}

// One process at a time can lock an address. The lock is valid for all users, and for one
// network only.
func TestLockAddress(t *testing.T) {
	network := t.Name()
	first, err := newLock(network, "52:54:00:00:00:01")
	if first == nil || err != nil {
		t.Fatal(first, err)
	}
	if second, err := newLock(network, "52:54:00:00:00:01"); second != nil || err != nil {
		t.Errorf("locked twice: %v, %v", second, err)
	}
	other, err := newLock(network+"2", "52:54:00:00:00:01")
	if other == nil || err != nil {
		t.Errorf("on another network: %v, %v", other, err)
	}
	for range 2 {
		if err := first.unlock(); err != nil {
			t.Error(err)
		}
	}
	again, err := newLock(network, "52:54:00:00:00:01")
	if again == nil || err != nil {
		t.Fatal(again, err)
	}
	again.unlock()
	other.unlock()
}

func TestReleaseMessage(t *testing.T) {
	server := netip.MustParseAddr("192.168.123.1")
	lease := virt.Lease{IP: "192.168.123.10", MAC: "52:54:00:01:02:03", ClientID: "ff:00:11"}
	message, err := releaseMessage(server, lease)
	if err != nil {
		t.Fatal(err)
	}
	if len(message) < 300 || !bytes.Equal(message[12:16], []byte{192, 168, 123, 10}) || !bytes.Equal(message[28:34], []byte{0x52, 0x54, 0, 1, 2, 3}) {
		t.Errorf("%x", message)
	}
	options := []byte{99, 130, 83, 99, 53, 1, 7, 54, 4, 192, 168, 123, 1, 61, 3, 0xff, 0, 0x11, 255}
	if !bytes.Equal(message[236:236+len(options)], options) {
		t.Errorf("options: %x", message[236:])
	}
	lease.ClientID = ""
	if message, err = releaseMessage(server, lease); err != nil || bytes.Contains(message[236:], []byte{61, 0}) {
		t.Errorf("without a client identifier: %x, %v", message, err)
	}
	for _, bad := range []virt.Lease{
		{}, {IP: "fd00::2", MAC: lease.MAC}, {IP: lease.IP}, {IP: lease.IP, MAC: lease.MAC, ClientID: "zz"},
		{IP: lease.IP, MAC: lease.MAC, ClientID: strings.Repeat("00", 256)},
	} {
		if message, err := releaseMessage(server, bad); err == nil {
			t.Errorf("%+v: %x", bad, message)
		}
	}
}
