package vm

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

// An emulated guest's sshd needs its processor for every connection, also for those
// that were given up since. Who connects too often gets no greeting at all.
func TestKnockDoesNotStarveASlowServer(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "forwarded": false} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Read(make([]byte, 256))
					time.Sleep(2 * time.Second) // one after the other
					conn.Write([]byte("SSH-2.0-test\r\n"))
					defer conn.Close()
				}
			}()
			conn, err := newKnocker(l.Addr().String(), direct).run(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
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
					conn, err := knock(ctx, addr)
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
