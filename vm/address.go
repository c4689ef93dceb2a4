package vm

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"libvirt.org/go/libvirt"
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
func (f *addressFinder) find(ctx context.Context, dom *libvirt.Domain, port int) (string, error) {
	address, err := interfaceAddress(ctx, dom, libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
	if err != nil && !unknown(err) {
		return "", err
	}
	if address == "" {
		address = f.agentAddress(ctx, dom)
	}
	if address == "" {
		if address, err = interfaceAddress(ctx, dom, libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_ARP); err != nil && !unknown(err) {
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
func (f *addressFinder) agentAddress(ctx context.Context, dom *libvirt.Domain) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asking {
		f.asking = true
		go func() {
			address, _ := interfaceAddress(ctx, dom, libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.asking, f.agent = false, address
		}()
	}
	return f.agent
}

// unknown says whether a source has no answer, for now or at all.
func unknown(err error) bool {
	for _, code := range []libvirt.ErrorNumber{
		libvirt.ERR_AGENT_UNRESPONSIVE, libvirt.ERR_ARGUMENT_UNSUPPORTED, libvirt.ERR_CONFIG_UNSUPPORTED,
		libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED, libvirt.ERR_OPERATION_INVALID,
		libvirt.ERR_INTERNAL_ERROR, libvirt.ERR_NO_NETWORK,
	} {
		if isCode(err, code) {
			return true
		}
	}
	return false
}

// interfaceAddress asks one source; empty if it knows none.
func interfaceAddress(ctx context.Context, dom *libvirt.Domain, source libvirt.DomainInterfaceAddressesSource) (string, error) {
	nics, err := await(ctx, "ask for the guest's address", func() ([]libvirt.DomainInterface, error) {
		return dom.ListAllInterfaceAddresses(source)
	})
	if err != nil {
		return "", err
	}
	return bestAddress(nics), nil
}

// bestAddress is the address of the first interface that has one which others can
// reach: IPv4 if it has both. An agent tells of every interface of its guest,
// also of bridges for containers; those have MAC addresses of their own making,
// which do not begin as libvirt's do.
func bestAddress(nics []libvirt.DomainInterface) string {
	var ipv6 string
	for _, nic := range nics {
		if nic.Hwaddr != "" && !strings.HasPrefix(strings.ToLower(nic.Hwaddr), libvirtMACPrefix) {
			continue
		}
		for _, a := range nic.Addrs {
			address, err := netip.ParseAddr(a.Addr)
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
