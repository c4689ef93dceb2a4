package network

import (
	"context"
	_ "embed" // the filter
	"errors"
	"fmt"
	"net/netip"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// guestFilterName is the name of our filter in libvirt: one for all machines,
	// defined when the first one starts and gone with the last.
	guestFilterName = "gitlab-sardine-executor"
	// filterTries bounds how often it is defined again for one machine.
	filterTries = 5
)

// guestFilterXML is the filter: what clean-traffic, which comes with libvirt,
// keeps a guest from, and talking to other guests.
//
//go:embed guestfilter.xml
var guestFilterXML string

// A guestFilter holds the values of the filter's variables on one network.
type guestFilter struct {
	gateway, mac  string
	network, mask string
}

// filterFor is the filter for guests of a network; nil if there is none, because
// libvirt does not hand out its addresses: then nobody here knows which address
// is whose.
func filterFor(n *libvirtxml.Network) *guestFilter {
	if n.MAC == nil {
		return nil
	}
	var found *guestFilter
	for _, ip := range n.IPs {
		gateway, err := netip.ParseAddr(ip.Address)
		if err != nil || !gateway.Is4() {
			continue
		}
		if found != nil || ip.DHCP == nil {
			return nil // several IPv4 networks on one bridge: the filter knows one
		}
		prefix, err := gateway.Prefix(prefixLength(ip))
		if err != nil {
			return nil
		}
		mask := netmask(prefix.Bits())
		found = &guestFilter{gateway: gateway.String(), mac: n.MAC.Address, network: prefix.Addr().String(), mask: mask}
	}
	return found
}

// prefixLength of an IPv4 network, which libvirt writes in one of two ways.
func prefixLength(ip libvirtxml.NetworkIP) int {
	mask, err := netip.ParseAddr(ip.Netmask)
	if err != nil {
		return int(ip.Prefix)
	}
	bits := 0
	for _, b := range mask.As4() {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	return bits
}

func netmask(bits int) string {
	m := ^uint32(0) << (32 - bits)
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// ref is the filter as a NIC refers to it. A guest's address is the one that is
// reserved for it or, without a reservation, what the network's own DHCP server gave it:
// one that a guest chooses may be another's.
func (f *guestFilter) ref(reserved *dhcp.Reservation) *libvirtxml.DomainInterfaceFilterRef {
	if f == nil {
		return nil
	}
	parameters := []libvirtxml.DomainInterfaceFilterParam{
		{Name: "CTRL_IP_LEARNING", Value: "dhcp"},
		{Name: "DHCPSERVER", Value: f.gateway},
	}
	if reserved != nil {
		parameters = []libvirtxml.DomainInterfaceFilterParam{{Name: "IP", Value: reserved.Address.String()}}
	}
	return &libvirtxml.DomainInterfaceFilterRef{
		Filter: guestFilterName,
		Parameters: append(parameters,
			libvirtxml.DomainInterfaceFilterParam{Name: "GATEWAY", Value: f.gateway},
			libvirtxml.DomainInterfaceFilterParam{Name: "GATEWAY_MAC", Value: f.mac},
			libvirtxml.DomainInterfaceFilterParam{Name: "NETWORK", Value: f.network},
			libvirtxml.DomainInterfaceFilterParam{Name: "NETMASK", Value: f.mask},
		),
	}
}

// RemoveFilter removes the filter when no machine has it any more; while one does, libvirt
// refuses.
func RemoveFilter(ctx context.Context, h *virt.Host) error {
	if !h.System() {
		return nil // users' daemons have no filters
	}
	err := h.UndefineFilter(ctx, guestFilterName)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil // the next machine that ends tries again
	}
	if err != nil {
		return fmt.Errorf("after the machine's end: %w", err)
	}
	return nil
}
