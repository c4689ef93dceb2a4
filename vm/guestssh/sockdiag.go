package guestssh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
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

func forgetNeighbour(addr string) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer kernel.Close()
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		return
	}
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

// A socketID is struct inet_diag_sockid of linux/inet_diag.h, a diagRequest struct
// inet_diag_req_v2, and a diagReply the beginning of struct inet_diag_msg.
type (
	socketID struct {
		LocalPort, RemotePort [2]byte  // in network order
		Local, Remote         [16]byte // an IPv4 address has the first four
		Interface             uint32
		Cookie                [2]uint32
	}
	diagRequest struct {
		Family, Protocol, Extensions, _ uint8
		States                          uint32
		ID                              socketID
	}
	diagReply struct {
		Family, State, Timer, Retransmits uint8
		ID                                socketID
		Expires, Unread, Unsent           uint32
	}
)

// unreadByPeer is how many bytes a process on this host, at the other end of conn,
// has not read yet (sock_diag(7)). Every user may ask. It is an error if the peer
// has no socket of that connection, or not yet.
//
// The library's own SocketGet has the kernel go through all of its sockets, which
// takes thirty times as long as to ask for the one.
func unreadByPeer(conn net.Conn) (uint32, error) {
	// The peer's socket has the two ends the other way round.
	local, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return 0, err
	}
	remote, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return 0, err
	}
	question := diagRequest{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, States: ^uint32(0)}
	if local.Addr().Is6() {
		question.Family = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(question.ID.LocalPort[:], local.Port())
	binary.BigEndian.PutUint16(question.ID.RemotePort[:], remote.Port())
	copy(question.ID.Local[:], local.Addr().AsSlice())
	copy(question.ID.Remote[:], remote.Addr().AsSlice())
	question.ID.Cookie = [2]uint32{nl.TCPDIAG_NOCOOKIE, nl.TCPDIAG_NOCOOKIE}
	data, err := binary.Append(nil, binary.NativeEndian, &question)
	if err != nil {
		return 0, err
	}
	kernel, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer kernel.Close()
	timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := errors.Join(kernel.SetSendTimeout(&timeout), kernel.SetReceiveTimeout(&timeout)); err != nil {
		return 0, err
	}
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	request.AddRawData(data)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: kernel}}
	replies, err := request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return 0, err
	}
	for _, text := range replies {
		var reply diagReply
		if _, err := binary.Decode(text, binary.NativeEndian, &reply); err != nil {
			return 0, err
		}
		if reply.State == netlink.TCP_ESTABLISHED || reply.State == netlink.TCP_CLOSE_WAIT {
			return reply.Unread, nil
		}
	}
	return 0, fmt.Errorf("nobody has accepted the connection to %s", local)
}
