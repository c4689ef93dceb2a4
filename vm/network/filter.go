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
	// guestFilterName is the name of the network filter in libvirt. All machines share it:
	// it is defined when the first one starts and removed after the last.
	guestFilterName = "gitlab-sardine-executor"
	// filterTries is how often it is defined again for one machine.
	filterTries = 5
)

// guestFilterXML is the filter. It prevents what libvirt's clean-traffic prevents, and traffic
// to other guests.
//
//go:embed guestfilter.xml
var guestFilterXML string

// A guestFilter holds the variables of the filter for one network.
type guestFilter struct {
	gateway, mac  string
	network, mask string
}

// filterFor returns the filter for the guests of a network; nil if libvirt does not assign the
// addresses of the network, so that those of the guests are not known.
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
			return nil // the filter supports one IPv4 network on a bridge
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

// prefixLength of an IPv4 network. libvirt has two formats for it.
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

// ref returns the reference of a NIC to the filter. The allowed address is the one that is
// reserved or, without a reservation, the one that the network's DHCP server assigns: an
// address that the guest chooses may belong to another machine.
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

// RemoveFilter removes the filter unless a machine uses it.
func RemoveFilter(ctx context.Context, h *virt.Host) error {
	if !h.System() {
		return nil // the daemons of users have no filters
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
