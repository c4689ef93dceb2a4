package netaddr

import (
	"net"
	"net/netip"
	"strings"
)

// Reach says from where an address can be reached. A registry may redirect clients to
// addresses of its own reach and wider ones.
type Reach int

const (
	Public   Reach = iota
	Private        // RFC 1918, 4193, 6598, and public addresses of this host
	Loopback       // this host only
	// LinkLocal: most clouds serve credentials of the machine there.
	LinkLocal
	// Nowhere: addresses of no host, such as 0.0.0.0, which Linux interprets as this host.
	Nowhere
)

func (r Reach) String() string {
	return [...]string{"public", "private", "loopback", "link-local", "unusable"}[r]
}

var (
	privateNetworks = prefixes(
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7",
		"100.64.0.0/10",  // shared by the customers of a carrier
		"198.18.0.0/15",  // benchmarks
		"192.0.0.0/24",   // IETF protocol assignments
		"64:ff9b:1::/48", // NAT64 of a site
		"2001::/32",      // Teredo
		"fec0::/10",      // site-local
	)
	unusableNetworks = prefixes("0.0.0.0/8", "224.0.0.0/3", "::/128", "ff00::/8")
	// These have an IPv4 address in their last bytes or after the prefix.
	nat64, ipv4Compatible, sixToFour = netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("2002::/16")
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// ReachOf classifies an address. own reports whether it belongs to this host.
func ReachOf(addr netip.Addr, own func(netip.Addr) bool) Reach {
	addr = embedded(addr.Unmap().WithZone(""))
	switch {
	case !addr.IsValid() || contains(unusableNetworks, addr):
		return Nowhere
	case addr.IsLoopback():
		return Loopback
	case addr.IsLinkLocalUnicast():
		return LinkLocal
	case contains(privateNetworks, addr) || own(addr):
		return Private
	}
	return Public
}

// embedded returns the IPv4 address that a translator would connect to.
func embedded(addr netip.Addr) netip.Addr {
	if !addr.Is6() || addr.IsLoopback() || addr.IsUnspecified() {
		return addr
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr), ipv4Compatible.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, network := range networks {
		if network.Contains(addr) {
			return true
		}
	}
	return false
}

// IsOwn reports whether an interface of this host has the address.
func IsOwn(addr netip.Addr) bool {
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, i := range interfaces {
		if network, ok := i.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok && ip.Unmap() == addr {
				return true
			}
		}
	}
	return false
}

// ReachOfName classifies a name without the DNS, for connections through a proxy, which
// resolves names itself.
func ReachOfName(host string) Reach {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return ReachOf(addr, IsOwn)
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	switch {
	case last == "localhost":
		return Loopback
	case last == "" || last[0] >= '0' && last[0] <= '9':
		// 127.1, 0x7f000001, 2130706433: inet_aton(3) interprets these as addresses.
		return Nowhere
	}
	return Public
}
