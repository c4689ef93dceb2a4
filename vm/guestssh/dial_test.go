package guestssh

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

// startGreeter starts a server that greets one client after the other, each after
// some time.
func startGreeter(t *testing.T, after time.Duration) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 256))
			time.Sleep(after)
			conn.Write([]byte("SSH-2.0-test\r\n"))
		}
	}()
	return l.Addr().String()
}

// An emulated guest's sshd needs its processor for every connection, also for those
// that were given up since. Who connects too often gets no greeting at all.
func TestKnockDoesNotStarveASlowServer(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "forwarded": false} {
		t.Run(name, func(t *testing.T) {
			conn, err := newKnocker(startGreeter(t, 2*time.Second), direct).run(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
	}
}

// A guest that has taken many attempts and then started anew has lost them. It is
// called again long before they are given up.
func TestKnockAfterAttemptsAreLost(t *testing.T) {
	k := newKnocker(startGreeter(t, 0), false)
	for lost := range knockIntervals {
		k.underWay[-1-lost] = time.Now()
		defer func() { k.answers <- answer{attempt: -1 - lost} }() // for whoever waits for them
	}
	ctx, cancel := context.WithTimeout(testContext(t), greetingTimeout-greetingInterval)
	defer cancel()
	conn, err := k.run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// The kernel says what the other end of a connection has not read.
func TestUnreadByPeer(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		// The kernel has accepted it, and holds what was sent.
		if n, err := unreadByPeer(conn); n != 5 || err != nil {
			t.Errorf("%s, not accepted: %d, %v", address, n, err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		for unread := uint32(5); unread > 0; unread-- {
			if n, err := unreadByPeer(conn); n != unread || err != nil {
				t.Errorf("%s: %d, %v; want %d", address, n, err, unread)
			}
			peer.Read(make([]byte, 1))
		}
		if n, err := unreadByPeer(conn); n != 0 || err != nil {
			t.Errorf("%s, all read: %d, %v", address, n, err)
		}
		peer.(*net.TCPConn).SetLinger(0)
		peer.Close()
		if n, err := unreadByPeer(conn); err == nil {
			t.Errorf("%s, reset: %d", address, n)
		}
	}
}

// BenchmarkKnock measures how long a server that is ready goes unnoticed: one
// whose host refuses connections before, as on a libvirt network, and one whose
// connections are accepted and lost before, as passt does.
func BenchmarkKnock(b *testing.B) {
	for name, boot := range map[string]func(*testing.B, time.Duration) (addr string, ready <-chan time.Time, end func()){
		"refused": bootRefusing, "lost": bootLosing,
	} {
		b.Run(name, func(b *testing.B) {
			var late []time.Duration
			for b.Loop() {
				for range 20 {
					addr, ready, end := boot(b, 2*time.Second+rand.N(500*time.Millisecond))
					ctx, cancel := context.WithTimeout(b.Context(), patience)
					conn, err := Dial(ctx, addr)
					found := time.Now()
					cancel()
					if err != nil {
						b.Fatal(err)
					}
					late = append(late, found.Sub(<-ready))
					conn.Close()
					end()
				}
			}
			slices.Sort(late)
			b.ReportMetric(float64(late[len(late)/2].Microseconds())/1000, "median-ms-late")
			b.ReportMetric(float64(late[len(late)-1].Microseconds())/1000, "max-ms-late")
		})
	}
}

func bootRefusing(b *testing.B, after time.Duration) (string, <-chan time.Time, func()) {
	addr, listen := reservePort(b)
	ready := make(chan time.Time, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(after)
		l := listen()
		defer l.Close()
		ready <- time.Now()
		if conn, err := l.Accept(); err == nil {
			defer conn.Close()
			conn.Write([]byte("SSH-2.0-test\r\n"))
		}
	}()
	return addr, ready, func() { <-done }
}

func bootLosing(b *testing.B, after time.Duration) (string, <-chan time.Time, func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ready := make(chan time.Time, 1)
	at := time.Now().Add(after)
	ready <- at
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if time.Now().Before(at) {
				defer conn.Close() // held till the end
				continue
			}
			conn.Write([]byte("SSH-2.0-test\r\n"))
			conn.Close()
		}
	}()
	return l.Addr().String(), ready, func() { l.Close() }
}
