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

// forgetNeighbour makes the kernel ask again for the link-layer address of a guest that
// did not answer the first time.
//
// While libvirt still sets up the network filter of a guest, the question and its answer
// are lost. The kernel asks again after a second
// (net.ipv4.neigh.default.retrans_time_ms), and until then every connection waits. Only
// root may do this; for other users the delay remains.
//
// It returns at once: a busy kernel can lose its answer (netlink(7)).
func (d *dialer) forgetNeighbour() {
	if !d.forgetting.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer d.forgetting.Store(false)
		forgetNeighbour(d.addr)
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
			_ = kernel.NeighDel(n) // if it fails, the kernel asks again later
		}
	}
}

// A socketID is struct inet_diag_sockid of linux/inet_diag.h, a diagRequest is struct
// inet_diag_req_v2, and a diagReply is the beginning of struct inet_diag_msg.
type (
	socketID struct {
		LocalPort, RemotePort [2]byte  // in network byte order
		Local, Remote         [16]byte // IPv4 uses the first four
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

// unreadByPeer returns the number of bytes that a process on this host, at the other end
// of conn, has not read yet (sock_diag(7)). Every user may ask. It is an error if the
// peer has no socket of that connection, or not yet.
//
// The library's own SocketGet makes the kernel list all of its sockets, which takes
// thirty times as long as a query for one.
func unreadByPeer(conn net.Conn) (uint32, error) {
	// The peer's socket has the two ends swapped.
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
	return 0, fmt.Errorf("no process has accepted the connection to %s", local)
}
