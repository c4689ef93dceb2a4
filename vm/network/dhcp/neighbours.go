package dhcp

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// heardOf are the states of entries in the neighbour table with a recently valid MAC address
// (NUD_VALID of the kernel without NOARP).
const heardOf = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT

// Neighbour returns the MAC address that the kernel knows for an address. onLink is false if
// the route leads through a router. It needs no privileges.
func Neighbour(address netip.Addr) (mac string, onLink bool, err error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", false, err
	}
	defer kernel.Close()
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		return "", false, err
	}
	ip := address.Unmap().AsSlice()
	routes, err := kernel.RouteGet(ip)
	if err != nil {
		return "", false, err
	}
	if len(routes) == 0 || routes[0].Gw != nil || routes[0].Via != nil {
		return "", false, nil
	}
	known, err := neighbours(kernel, routes[0].LinkIndex, address.Unmap().Is6())
	if err != nil {
		return "", true, err
	}
	if n, ok := known[address.Unmap()]; ok {
		return n, true, nil
	}
	return "", true, errors.New("the kernel has no entry in its neighbour table (ip neigh)")
}

// neighbours returns the MAC addresses that the kernel knows on a device.
func neighbours(kernel *netlink.Handle, device int, ipv6 bool) (map[netip.Addr]string, error) {
	family := netlink.FAMILY_V4
	if ipv6 {
		family = netlink.FAMILY_V6
	}
	entries, err := kernel.NeighList(device, family)
	if err != nil {
		return nil, err
	}
	known := make(map[netip.Addr]string)
	for i := range entries {
		if address, ok := netip.AddrFromSlice(entries[i].IP); ok && entries[i].State&heardOf != 0 {
			known[address.Unmap()] = entries[i].HardwareAddr.String()
		}
	}
	return known, nil
}

// netlinkTimeout bounds each exchange with the kernel.
const netlinkTimeout = time.Second

// bridgeNeighbours returns the machines that this host knows on a bridge. It is only a hint:
// without it, the result is nil.
func bridgeNeighbours(bridge string) map[netip.Addr]string {
	device, err := net.InterfaceByName(bridge)
	if err != nil {
		return nil
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	defer kernel.Close()
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		return nil
	}
	known, _ := neighbours(kernel, device.Index, false)
	return known
}
