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

// addressFinder finds the address of a guest on a libvirt network. Of the
// sources that know one, the first counts: the lease that the network's own DHCP
// server gave, what the guest's agent says, and the host's table of neighbours
// (ARP, NDP). The latter two serve networks whose addresses somebody else hands
// out.
type addressFinder struct {
	mu     sync.Mutex
	asking bool   // the agent
	agent  string // its last answer
}

// find returns host:port; empty if no source knows an address.
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

// agentAddress is what the guest's agent last said. libvirt waits 5 s for an
// agent that does not answer, as none does while a guest boots; so it is asked on
// the side, one question at a time.
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

// interfaceAddress asks one source; empty if it knows none.
func interfaceAddress(ctx context.Context, dom *virt.Domain, source virt.AddressSource) (string, error) {
	nics, err := dom.Interfaces(ctx, source)
	return bestAddress(nics), err
}

// bestAddress is the address of the first interface that has one which others can
// reach: IPv4 if it has both. An agent tells of every interface of its guest,
// also of bridges for containers; those have MAC addresses of their own making,
// which do not begin as libvirt's do.
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

// libvirtMACPrefix begins the MAC addresses that libvirt makes for QEMU's guests
// (its virDomainNetGenerateMAC): every machine of ours gets a new one.
const libvirtMACPrefix = "52:54:00:"
