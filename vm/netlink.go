package vm

import (
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetNeighbour makes the kernel ask anew for the link-layer address of a guest
// that it has asked for in vain.
//
// A guest whose network filter libvirt is still setting up gets the question and
// its answer is lost; the kernel asks again after a second
// (net.ipv4.neigh.default.retrans_time_ms), and until then every connection waits.
// Only root may do it; for others it stays as it is.
//
// It returns at once, for a busy kernel can lose its answer (netlink(7)).
func (k *knocker) forgetNeighbour() {
	if !k.forgetting.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer k.forgetting.Store(false)
		forgetNeighbour(k.addr)
	}()
}

// netlinkTimeout bounds each exchange with the kernel.
const netlinkTimeout = time.Second

// openNetlink opens a socket to a part of the kernel.
func openNetlink(family int) (*netlink.Handle, error) {
	kernel, err := netlink.NewHandle(family)
	if err != nil {
		return nil, err
	}
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		kernel.Close()
		return nil, err
	}
	return kernel, nil
}

// unreadByPeer is how many bytes a process on this host, at the other end of conn,
// has not read yet (sock_diag(7)). Every user may ask.
func unreadByPeer(conn net.Conn) (uint32, error) {
	kernel, err := openNetlink(unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer kernel.Close()
	peer, err := kernel.SocketGet(conn.RemoteAddr(), conn.LocalAddr())
	if err != nil {
		return 0, err
	}
	return peer.RQueue, nil
}

func forgetNeighbour(addr string) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return
	}
	kernel, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer kernel.Close()
	family := netlink.FAMILY_V4
	if ap.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := kernel.NeighList(0, family)
	if err != nil {
		return
	}
	for i := range neighbours {
		n := &neighbours[i]
		if n.State&netlink.NUD_INCOMPLETE != 0 && n.IP.Equal(net.IP(ap.Addr().AsSlice())) {
			_ = kernel.NeighDel(n) // it is asked for again anyway, later
		}
	}
}
