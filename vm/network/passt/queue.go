package passt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds each exchange with the kernel.
const netlinkTimeout = time.Second

// A queue is what passt has sent to QEMU, and QEMU has not read yet.
type queue struct {
	inode uint32 // of passt's socket; 0 if it is not known
	last  uint32 // size at the last look
}

// stalled reports whether QEMU has read nothing since the last call. It is false if the kernel
// does not tell (it needs unix_diag).
func (q *queue) stalled() bool {
	if q.inode == 0 {
		return false
	}
	size, err := unreadByPeer(q.inode)
	if err != nil {
		return false
	}
	stalled := size > 0 && size >= q.last
	q.last = size
	return stalled
}

// Stalled reports whether the guest takes no packets, and had not at the last call: QEMU reads
// its socket only when the guest's network card can receive. In this state, connections to
// the guest must not be attempted. Each leaves some frames in the queue, and the passt of
// Debian 13 (2025-05-03) ends with a segmentation fault when a frame of TCP without data does
// not fit: tcp_revert_seq() then uses the connection of the frame, which only frames with data
// have.
func (p *Passt) Stalled() bool { return p.queue.stalled() }

// A diagRequest is struct unix_diag_req of linux/unix_diag.h.
type diagRequest struct {
	Family, Protocol uint8
	_                uint16
	States           uint32
	Inode            uint32
	Show             uint32
	Cookie           [2]uint32
}

const (
	diagReplySize  = 16 // struct unix_diag_msg
	showQueues     = 0x10
	queuesAttr     = 4 // UNIX_DIAG_RQLEN
	anyCookie      = nl.TCPDIAG_NOCOOKIE
	allSocketState = ^uint32(0)
)

// unreadByPeer returns how much memory the data takes that was sent by a socket and not read at
// the other end (sock_diag(7)). Every user may ask.
func unreadByPeer(inode uint32) (uint32, error) {
	data, err := binary.Append(nil, binary.NativeEndian, &diagRequest{
		Family: unix.AF_UNIX, States: allSocketState, Inode: inode, Show: showQueues, Cookie: [2]uint32{anyCookie, anyCookie},
	})
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
	for _, reply := range replies {
		if len(reply) < diagReplySize {
			continue
		}
		attributes, err := nl.ParseRouteAttr(reply[diagReplySize:])
		if err != nil {
			return 0, err
		}
		for _, a := range attributes {
			if a.Attr.Type == queuesAttr && len(a.Value) >= 8 {
				return binary.NativeEndian.Uint32(a.Value[4:]), nil
			}
		}
	}
	return 0, fmt.Errorf("the kernel does not tell the queues of socket %d", inode)
}
