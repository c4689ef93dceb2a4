package network

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"gitlab-sardine-executor/vm/virt"
)

// addressFinder finds the address of a guest on a libvirt network. It uses the first of these
// sources that has one: the leases of the network's own DHCP server, the guest agent, and
// the host's neighbour table (ARP, NDP). The last two are for networks on which another
// server assigns addresses.
type addressFinder struct {
	mu     sync.Mutex
	asking bool   // a query to the agent is running
	agent  string // the last answer of the agent
}

// find returns host:port; empty if no source has an address.
func (f *addressFinder) find(ctx context.Context, dom *virt.Domain, port int) (string, error) {
	address, err := interfaceAddress(ctx, dom, virt.FromLease)
	if err != nil {
		return "", err
	}
	if address == "" {
		address = f.agentAddress(ctx, dom)
	}
	if address == "" {
		if address, err = interfaceAddress(ctx, dom, virt.FromARP); err != nil {
			return "", err
		}
	}
	if address == "" {
		return "", nil
	}
	return net.JoinHostPort(address, strconv.Itoa(port)), nil
}

// agentAddress returns the last answer of the guest agent. libvirt waits 5 s for an agent that
// does not answer, such as that of a booting guest. Queries therefore run in the
// background, one at a time.
func (f *addressFinder) agentAddress(ctx context.Context, dom *virt.Domain) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asking {
		f.asking = true
		go func() {
			address, _ := interfaceAddress(ctx, dom, virt.FromAgent)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.asking, f.agent = false, address
		}()
	}
	return f.agent
}

// interfaceAddress queries one source; the result is empty if it has no address.
func interfaceAddress(ctx context.Context, dom *virt.Domain, source virt.AddressSource) (string, error) {
	nics, err := dom.Interfaces(ctx, source)
	return bestAddress(nics), err
}

// bestAddress returns the first address that is reachable from outside the guest, IPv4
// preferred. An agent reports all interfaces of its guest, also container bridges, which do
// not have MAC addresses with libvirt's prefix.
func bestAddress(nics []virt.Interface) string {
	var ipv6 string
	for _, nic := range nics {
		if nic.MAC != "" && !strings.HasPrefix(strings.ToLower(nic.MAC), libvirtMACPrefix) {
			continue
		}
		for _, a := range nic.Addresses {
			address, err := netip.ParseAddr(a)
			switch {
			case err != nil, address.IsLoopback(), address.IsLinkLocalUnicast(), address.IsMulticast(), address.IsUnspecified():
			case address.Unmap().Is4():
				return address.Unmap().String()
			case ipv6 == "":
				ipv6 = address.String()
			}
		}
	}
	return ipv6
}

// libvirtMACPrefix is the prefix of the MAC addresses that libvirt generates for QEMU
// (virDomainNetGenerateMAC). All machines of jobs have it.
const libvirtMACPrefix = "52:54:00:"
