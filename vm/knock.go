package vm

import (
	"context"
	"errors"
	"net"
	"time"
)

const (
	// knockInterval is the time between two attempts to reach a guest that may
	// still be booting, and so the most that a ready guest goes unnoticed.
	knockInterval = 150 * time.Millisecond
	// knockTimeout is how long an attempt may wait for the server's greeting. One
	// made while the guest boots is not refused but lost: passt accepts it at once
	// and finds nobody to hand it to. Attempts follow each other without a gap only
	// if those that may be under way at once, times the interval, cover this time.
	knockTimeout = 1200 * time.Millisecond
	// patientTimeout is how long every patientEach-th attempt may wait: the sshd of
	// an emulated guest can take longer to greet than the others have.
	patientTimeout = 15 * time.Second
	patientEach    = 40
	// knocksAtOnce bounds the attempts under way, and so what a server that has
	// just come up finds in its queue (OpenSSH's MaxStartups is 10).
	knocksAtOnce = 10
)

// knock connects to the SSH server at addr as soon as there is one, and returns
// the connection on which it greeted. It tries again until ctx ends.
//
// Each attempt is a connection of its own and sends our version line at once:
// passt, as in Debian 12, delivers nothing of the guest until the client has
// sent something, so that whoever waits for the banner first waits for ever.
func knock(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		conn net.Conn
		err  error
	}
	answers := make(chan answer, knocksAtOnce)
	underWay, attempts := 0, 0
	var last error
	ticker := time.NewTicker(knockInterval)
	defer ticker.Stop()
	defer func() { // whoever answers after all is not needed any more
		go func(n int) {
			for ; n > 0; n-- {
				if a := <-answers; a.conn != nil {
					a.conn.Close()
				}
			}
		}(underWay)
	}()
	for {
		if underWay < knocksAtOnce {
			underWay++
			attempts++
			timeout := knockTimeout
			if attempts%patientEach == 0 {
				timeout = patientTimeout
			}
			go func() {
				conn, err := knockOnce(ctx, addr, timeout)
				answers <- answer{conn, err}
			}()
		}
		for tick := false; !tick; {
			select {
			case a := <-answers:
				underWay--
				if a.err == nil {
					return a.conn, nil
				}
				last = a.err
			case <-ctx.Done():
				return nil, errors.Join(context.Cause(ctx), last)
			case <-ticker.C:
				tick = true
			}
		}
	}
}

func knockOnce(ctx context.Context, addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	greeting := make([]byte, 256)
	n := 0
	if _, err = conn.Write([]byte(clientVersion + "\r\n")); err == nil {
		n, err = conn.Read(greeting)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &greetedConn{Conn: conn, sent: len(clientVersion) + 2, received: greeting[:n]}, nil
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
