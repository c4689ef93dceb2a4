package distribution

import (
	"net"
	"net/netip"
	"strings"
)

// A reach says from where an address can be reached. A registry may send a client
// to addresses of its own reach and to wider ones.
type reach int

const (
	public   reach = iota
	private        // RFC 1918, 4193, 6598, and public addresses of this host
	loopback       // this host alone
	// link-local: on most clouds, credentials of the machine are served there.
	linkLocal
	// nowhere: addresses that are no host's, such as 0.0.0.0, which Linux takes for
	// this host.
	nowhere
)

func (r reach) String() string {
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
	// An IPv4 address stands in the last bytes of these, or behind the prefix.
	nat64, ipv4Compatible, sixToFour = netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("2002::/16")
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// reachOf classifies an address. own reports whether it is one of this host.
func reachOf(addr netip.Addr, own func(netip.Addr) bool) reach {
	addr = embedded(addr.Unmap().WithZone(""))
	switch {
	case !addr.IsValid() || contains(unusableNetworks, addr):
		return nowhere
	case addr.IsLoopback():
		return loopback
	case addr.IsLinkLocalUnicast():
		return linkLocal
	case contains(privateNetworks, addr) || own(addr):
		return private
	}
	return public
}

// embedded is the IPv4 address that a translator would connect to.
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

// isOwnAddress reports whether an interface of this host has the address.
func isOwnAddress(addr netip.Addr) bool {
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

// reachOfName is what a name alone says of its reach, without the DNS: for
// connections through a proxy, which resolves names itself.
func reachOfName(host string) reach {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return reachOf(addr, isOwnAddress)
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	switch {
	case last == "localhost":
		return loopback
	case last == "" || last[0] >= '0' && last[0] <= '9':
		// 127.1, 0x7f000001, 2130706433: no name ends so, and inet_aton(3) takes it
		// for an address.
		return nowhere
	}
	return public
}
