package guestssh

import (
	"bytes"
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
	// minInterval is the shortest time between two attempts to reach a guest that may
	// still be booting, and so the longest that a ready guest goes unnoticed. Later the
	// interval is 1/intervalPart of the time waited so far: a guest that has taken long
	// is slow, and must have time for other work than our attempts.
	minInterval  = 150 * time.Millisecond
	intervalPart = 80
	// maxPending is the number of attempts that may wait for the guest to accept them,
	// and how many intervals each waits. An attempt made while the guest boots is not
	// refused but lost: passt accepts it at once and has no guest to forward it to.
	// OpenSSH lets 10 connections log in at the same time (MaxStartups).
	maxPending = 8
	// bannerTimeout is how long an attempt waits at least for the banner once the guest
	// has accepted it. Another attempt starts after bannerInterval. The sshd of an
	// emulated guest takes seconds to send its banner, and longer with each further
	// connection.
	bannerTimeout  = 20 * time.Second
	bannerInterval = 4 * time.Second
)

// Dial connects to the SSH server at addr as soon as one answers. It returns a
// connection on which the server has sent its banner, and retries until ctx ends.
//
// Each attempt uses a new connection and sends our version line at once: the passt of
// Debian 12 forwards nothing from the guest before the client has sent something, so a
// client that waits for the banner first waits forever.
//
// No attempt is made while stalled reports that the guest takes no packets; nil if that is
// not known.
func Dial(ctx context.Context, addr string, stalled func() bool) (net.Conn, error) {
	d := newDialer(addr, !isLoopback(addr))
	if stalled != nil {
		d.stalled = stalled
	}
	return d.dialSSH(ctx)
}

// isLoopback reports whether addr is a port that a process on this host forwards.
func isLoopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().IsLoopback()
}

// A dialer makes the attempts to reach one server.
type dialer struct {
	addr string
	// direct: the guest itself accepts connections, not a forwarder.
	direct   bool
	stalled  func() bool
	results  chan result
	accepted chan int // numbers of attempts that the guest has accepted

	// pending holds the running attempts, and when the guest accepted them; zero if it
	// has not.
	pending    map[int]time.Time
	forgetting atomic.Bool // see forgetNeighbour
}

// A result is the outcome of an attempt.
type result struct {
	attempt int
	conn    net.Conn
	err     error
}

func newDialer(addr string, direct bool) *dialer {
	return &dialer{
		addr: addr, direct: direct,
		stalled:  func() bool { return false },
		results:  make(chan result, maxPending),
		accepted: make(chan int),
		pending:  map[int]time.Time{},
	}
}

func (d *dialer) dialSSH(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer d.abandon()
	began := time.Now()
	var last error
	for attempt := 0; ; attempt++ {
		interval := max(minInterval, time.Since(began)/intervalPart)
		unaccepted, wait := d.count(max(bannerInterval, interval))
		if unaccepted < maxPending && !wait && !d.stalled() {
			if d.direct && unaccepted > 0 {
				d.forgetNeighbour()
			}
			d.pending[attempt] = time.Time{}
			go func() {
				conn, err := d.attempt(ctx, attempt, maxPending*interval)
				d.results <- result{attempt, conn, err}
			}()
		}
		next := time.After(interval)
		for waiting := true; waiting; {
			select {
			case r := <-d.results:
				delete(d.pending, r.attempt)
				if r.err == nil {
					return r.conn, nil
				}
				last = r.err
			case n := <-d.accepted:
				if _, running := d.pending[n]; running {
					d.pending[n] = time.Now()
				}
			case <-ctx.Done():
				return nil, errors.Join(context.Cause(ctx), last)
			case <-next:
				waiting = false
			}
		}
	}
}

// count counts the attempts that the guest has not accepted. wait reports whether it
// accepted one less than recent ago, and so is about to send its banner. Attempts that
// it accepted earlier may be lost: the guest may have rebooted since.
func (d *dialer) count(recent time.Duration) (unaccepted int, wait bool) {
	for _, at := range d.pending {
		if at.IsZero() {
			unaccepted++
		} else if time.Since(at) < recent {
			wait = true
		}
	}
	return unaccepted, wait
}

// abandon closes connections that are still established after the first success.
func (d *dialer) abandon() {
	go func(n int) {
		for ; n > 0; n-- {
			if r := <-d.results; r.conn != nil {
				r.conn.Close()
			}
		}
	}(len(d.pending))
}

// attempt makes one attempt. timeout is how long the guest has to accept it.
func (d *dialer) attempt(ctx context.Context, number int, timeout time.Duration) (net.Conn, error) {
	tcp := net.Dialer{Timeout: timeout, Control: resetOnClose}
	conn, err := tcp.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	expire := time.AfterFunc(timeout, cancel)
	defer expire.Stop()
	accepted := func() {
		expire.Reset(max(bannerTimeout, timeout))
		select {
		case d.accepted <- number:
		case <-ctx.Done():
		}
	}
	banner, err := d.waitBanner(ctx, conn, accepted)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	endOrderly(conn)
	return &prefetchedConn{Conn: conn, sent: len(clientVersion) + 2, received: banner, banner: banner}, nil
}

// waitBanner sends our version line and returns the first bytes of the server's. It
// calls accepted when the guest has accepted the connection.
func (d *dialer) waitBanner(ctx context.Context, conn net.Conn, accepted func()) ([]byte, error) {
	if _, err := conn.Write([]byte(clientVersion + "\r\n")); err != nil {
		return nil, err
	}
	if d.direct {
		accepted()
	} else {
		go whenForwarded(ctx, conn, accepted)
	}
	banner := make([]byte, 256)
	n, err := conn.Read(banner)
	if bytes.HasPrefix(banner[:n], penalty) {
		select {
		case <-time.After(penaltyPause):
		case <-ctx.Done():
		}
		return nil, errors.New("the guest's SSH server refuses connections for a while, after refused logins (PerSourcePenalties)")
	}
	return banner[:n], err
}

// whenForwarded calls then when the process that forwards the connection has read what
// we sent: passt and QEMU's slirp leave it in their socket until the guest has accepted
// the connection. It returns when ctx ends. If the kernel does not report it, then is
// never called.
func whenForwarded(ctx context.Context, conn net.Conn, then func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(minInterval):
		}
		if left, err := unreadByPeer(conn); err == nil && left == 0 {
			then()
			return
		}
	}
}

// resetOnClose makes the kernel send a reset instead of an end of file when the
// connection is closed, also when this process is killed. The passt of Debian 12 does
// not process the end of a connection that it has not forwarded to a guest yet: it polls
// for it in a loop, with a whole CPU, for the 10 s that it waits for the guest. After a
// reset it drops the connection. It is for [net.Dialer.Control].
func resetOnClose(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		// A failure costs CPU time only.
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
}

// endOrderly undoes resetOnClose.
func endOrderly(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(-1)
	}
}

// prefetchedConn is a connection on which both version lines have been sent already.
// x/crypto/ssh exchanges them itself: what it writes first is dropped, and what it reads
// first is what was received.
type prefetchedConn struct {
	net.Conn
	sent     int    // number of bytes to drop from the next writes
	received []byte // bytes to return from the next reads
	banner   []byte // the beginning of the server's version line
}

func (c *prefetchedConn) Write(p []byte) (int, error) {
	skip := min(c.sent, len(p))
	c.sent -= skip
	if skip == len(p) {
		return skip, nil
	}
	n, err := c.Conn.Write(p[skip:])
	return skip + n, err
}

func (c *prefetchedConn) Read(p []byte) (int, error) {
	if len(c.received) > 0 {
		n := copy(p, c.received)
		c.received = c.received[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}
