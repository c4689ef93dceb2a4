package guestssh

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// knockInterval is the least time between two attempts to reach a guest that may
	// still be booting, and so the most that a ready guest goes unnoticed; later it
	// is this part of the time waited so far. A guest that has taken long is slow,
	// and attempts must not be all that it does.
	knockInterval = 150 * time.Millisecond
	knockPart     = 80
	// knockIntervals is how many intervals an attempt may wait that the guest does not
	// take. One made while it boots is not refused but lost: passt accepts it at once
	// and finds nobody to hand it to. As many of them can be under way, so that they
	// follow each other without a gap; OpenSSH has 10 log in at once (MaxStartups).
	knockIntervals = 8
	// greetingTimeout is how long an attempt may wait at least once it is known that
	// the guest itself has taken the connection, and greetingInterval the time after
	// which another one is made all the same. The sshd of an emulated guest takes
	// seconds to greet, and the more the more of them it has to start.
	greetingTimeout  = 20 * time.Second
	greetingInterval = 4 * time.Second
)

// Dial connects to the SSH server at addr as soon as there is one, and returns
// the connection on which it greeted. It tries again until ctx ends.
//
// Each attempt is a connection of its own and sends our version line at once:
// passt, as in Debian 12, delivers nothing of the guest until the client has
// sent something, so that whoever waits for the banner first waits for ever.
func Dial(ctx context.Context, addr string) (net.Conn, error) {
	return newKnocker(addr, !isLoopback(addr)).run(ctx)
}

// isLoopback says whether addr is a port that somebody on this host forwards.
func isLoopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().IsLoopback()
}

// A knocker makes the attempts to reach one server.
type knocker struct {
	addr string
	// direct says that a connection is accepted by the guest, not by a forwarder.
	direct  bool
	answers chan answer
	taken   chan int // numbers of attempts that the guest has taken

	underWay   map[int]time.Time // attempts, and when the guest took them; zero: not yet
	forgetting atomic.Bool       // see forgetNeighbour
}

// An answer is how an attempt ended.
type answer struct {
	attempt int
	conn    net.Conn
	err     error
}

func newKnocker(addr string, direct bool) *knocker {
	return &knocker{
		addr: addr, direct: direct,
		answers:  make(chan answer, knockIntervals),
		taken:    make(chan int),
		underWay: map[int]time.Time{},
	}
}

func (k *knocker) run(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer k.abandon()
	began := time.Now()
	var last error
	for attempt := 0; ; attempt++ {
		interval := max(knockInterval, time.Since(began)/knockPart)
		untaken, waits := k.count(max(greetingInterval, interval))
		if untaken < knockIntervals && !waits {
			if k.direct && untaken > 0 {
				k.forgetNeighbour()
			}
			k.underWay[attempt] = time.Time{}
			go func() {
				conn, err := k.once(ctx, attempt, knockIntervals*interval)
				k.answers <- answer{attempt, conn, err}
			}()
		}
		next := time.After(interval)
		for waiting := true; waiting; {
			select {
			case a := <-k.answers:
				delete(k.underWay, a.attempt)
				if a.err == nil {
					return a.conn, nil
				}
				last = a.err
			case taken := <-k.taken:
				if _, still := k.underWay[taken]; still {
					k.underWay[taken] = time.Now()
				}
			case <-ctx.Done():
				return nil, errors.Join(context.Cause(ctx), last)
			case <-next:
				waiting = false
			}
		}
	}
}

// count counts the attempts that the guest has not taken; waits says whether it has
// taken one not long ago, so that it is its turn. Those that it took earlier may
// be lost: it can have started anew since.
func (k *knocker) count(notLong time.Duration) (untaken int, waits bool) {
	for _, at := range k.underWay {
		if at.IsZero() {
			untaken++
		} else if time.Since(at) < notLong {
			waits = true
		}
	}
	return untaken, waits
}

// abandon closes what answers after all and is not needed any more.
func (k *knocker) abandon() {
	go func(n int) {
		for ; n > 0; n-- {
			if a := <-k.answers; a.conn != nil {
				a.conn.Close()
			}
		}
	}(len(k.underWay))
}

// once makes one attempt; timeout is how long the guest has to take it.
func (k *knocker) once(ctx context.Context, attempt int, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout, Control: resetOnClose}
	conn, err := dialer.DialContext(ctx, "tcp", k.addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	giveUp := time.AfterFunc(timeout, cancel)
	defer giveUp.Stop()
	taken := func() {
		giveUp.Reset(max(greetingTimeout, timeout))
		select {
		case k.taken <- attempt:
		case <-ctx.Done():
		}
	}
	greeting := make([]byte, 256)
	n := 0
	if _, err = conn.Write([]byte(clientVersion + "\r\n")); err == nil {
		if k.direct {
			taken()
		} else {
			go whenHandedOver(ctx, conn, taken)
		}
		n, err = conn.Read(greeting)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	endOrderly(conn)
	return &greetedConn{Conn: conn, sent: len(clientVersion) + 2, received: greeting[:n]}, nil
}

// whenHandedOver calls then when whoever forwards the connection has got rid of what
// we sent: passt and QEMU's slirp leave it in their socket until the guest has taken
// the connection. It returns when ctx ends. Where the kernel does not tell, it does
// not call then.
func whenHandedOver(ctx context.Context, conn net.Conn, then func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(knockInterval):
		}
		if left, err := unreadByPeer(conn); err == nil && left == 0 {
			then()
			return
		}
	}
}

// resetOnClose has the kernel, when the connection is closed, whoever ends, send a
// reset in place of an end of file. passt, as in Debian 12, does not take the end of
// a connection in that it has not handed to a guest yet: it asks for it again and
// again, with all of a processor, for the 10 s that it waits for the guest. On a
// reset it forgets the connection. It is for [net.Dialer.Control].
func resetOnClose(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// It costs time only if that fails.
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}

// endOrderly takes resetOnClose back.
func endOrderly(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(-1)
	}
}

// greetedConn is a connection on which the version lines have gone over the
// wire already. x/crypto/ssh, which wants to exchange them itself, is told so.
type greetedConn struct {
	net.Conn
	sent     int    // bytes that are to be written again, and are not
	received []byte // bytes that were read and are to be read again
}

func (c *greetedConn) Write(p []byte) (int, error) {
	skip := min(c.sent, len(p))
	c.sent -= skip
	if skip == len(p) {
		return skip, nil
	}
	n, err := c.Conn.Write(p[skip:])
	return skip + n, err
}

func (c *greetedConn) Read(p []byte) (int, error) {
	if len(c.received) > 0 {
		n := copy(p, c.received)
		c.received = c.received[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
