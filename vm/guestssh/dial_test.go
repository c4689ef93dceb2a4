package guestssh

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// startServer starts a server that sends its banner to a connection once it has had no
// newer connection for that long. It counts connections.
func startServer(t *testing.T, quiet time.Duration) (addr string, connections *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	newest := new(atomic.Int64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			number := newest.Add(1)
			go func() {
				defer conn.Close()
				conn.Read(make([]byte, 256)) // the version line
				time.Sleep(quiet)
				if newest.Load() == number {
					conn.Write([]byte("SSH-2.0-test\r\n"))
					io.Copy(io.Discard, conn)
				}
			}()
		}
	}()
	return l.Addr().String(), newest
}

// The sshd of an emulated guest needs the CPU for every connection. A client that
// connects too often gets no banner at all.
func TestDialDoesNotStarveASlowServer(t *testing.T) {
	t.Parallel()
	for name, direct := range map[string]bool{"direct": true, "forwarded": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, connections := startServer(t, time.Second)
			conn, err := newDialer(addr, direct).dialSSH(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			// One, and a few on a busy host: a second follows after bannerInterval.
			if n := connections.Load(); n > 4 {
				t.Errorf("the server had %d connections", n)
			}
		})
	}
}

// A guest that accepted many attempts and then rebooted has lost them. A new attempt
// follows long before they time out.
func TestDialAfterAttemptsAreLost(t *testing.T) {
	t.Parallel()
	addr, _ := startServer(t, 0)
	d := newDialer(addr, false)
	accepted := time.Now().Add(2*minInterval - bannerInterval)
	for lost := range maxPending {
		d.pending[-1-lost] = accepted
		defer func() { d.results <- result{attempt: -1 - lost} }() // abandon waits for them
	}
	ctx, cancel := context.WithTimeout(testContext(t), bannerTimeout-bannerInterval)
	defer cancel()
	conn, err := d.dialSSH(ctx)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// The kernel reports what the other end of a connection has not read.
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

// BenchmarkDial measures how long a server that is ready goes unnoticed. Before that, its
// host refuses connections, as on a libvirt network, or accepts and loses them, as passt
// does.
func BenchmarkDial(b *testing.B) {
	for name, boot := range map[string]func(*testing.B, time.Duration) (addr string, ready <-chan time.Time, end func()){
		"refused": bootRefusing, "lost": bootLosing,
	} {
		b.Run(name, func(b *testing.B) {
			var late []time.Duration
			for b.Loop() {
				for range 20 {
					addr, ready, end := boot(b, 2*time.Second+rand.N(500*time.Millisecond))
					ctx, cancel := context.WithTimeout(b.Context(), patience)
					conn, err := Dial(ctx, addr, nil)
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
				defer conn.Close() // kept open until the end
				continue
			}
			conn.Write([]byte("SSH-2.0-test\r\n"))
			conn.Close()
		}
	}()
	return l.Addr().String(), ready, func() { l.Close() }
}

// A guest that takes no packets is not called: what it does not take stays on the host.
func TestDialWaitsForAStalledGuest(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var calls atomic.Int32
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			conn.Write([]byte("SSH-2.0-test\r\n"))
			conn.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 3*minInterval)
	defer cancel()
	if _, err := Dial(ctx, l.Addr().String(), func() bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := calls.Load(); n > 0 {
		t.Errorf("the guest was called %d times", n)
	}
	asked := 0
	conn, err := Dial(t.Context(), l.Addr().String(), func() bool { asked++; return asked < 3 })
	if err != nil || asked < 3 {
		t.Fatalf("%v after %d questions", err, asked)
	}
	conn.Close()
}
