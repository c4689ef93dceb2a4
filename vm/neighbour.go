package vm

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// forgetNeighbour makes the kernel ask anew for the link-layer address of a guest
// that it has asked for in vain.
//
// A guest whose network filter libvirt is still setting up gets the question and
// its answer is lost; the kernel asks again after a second
// (net.ipv4.neigh.default.retrans_time_ms), and until then every connection waits.
// Only root may do it; for others it stays as it is.
func forgetNeighbour(addr string) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return
	}
	family := netlink.FAMILY_V4
	if ap.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := netlink.NeighList(0, family)
	if err != nil {
		return
	}
	for i := range neighbours {
		n := &neighbours[i]
		if n.State&netlink.NUD_INCOMPLETE != 0 && n.IP.Equal(net.IP(ap.Addr().AsSlice())) {
			_ = netlink.NeighDel(n)
		}
	}
}
