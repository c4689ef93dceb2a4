//go:build boot

package boot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/virt"
)

// benchLab is a lab of root in this process.
func benchLab(b *testing.B) *lab {
	b.Helper()
	mode := testbed.System(b)
	host, err := virt.Open(b.Context(), mode.Connect)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { host.Close() })
	return &lab{mode: mode.Name, dir: mode.Dir(b), guest: readableGuest(b, mode), host: host}
}

// BenchmarkReady measures how much later than somebody who does nothing but
// connect, a hundred times a second, the driver has logged in to a guest that
// boots on a libvirt network.
func BenchmarkReady(b *testing.B) {
	l := benchLab(b)
	var late []time.Duration
	for n := 0; b.Loop(); n++ {
		for i := range 3 {
			spec := l.spec(fmt.Sprintf("ready-%d-%d", n, i))
			guest := l.start(b, spec)
			answered := make(chan time.Time, 1)
			go func() { answered <- firstAnswer(b.Context(), l.virsh(b, "dumpxml", spec.Name)) }()
			if err := waitReady(b, guest, guestLogin); err != nil {
				b.Fatal(err)
			}
			late = append(late, time.Since(<-answered))
			guest.Close()
			l.virsh(b, "destroy", spec.Name)
		}
	}
	slices.Sort(late)
	b.ReportMetric(float64(late[len(late)/2].Milliseconds()), "median-ms-to-login")
	b.ReportMetric(float64(late[len(late)-1].Milliseconds()), "max-ms-to-login")
}

// firstAnswer is when the machine's SSH server first greeted; its address is read
// from where libvirt's DHCP server writes it.
func firstAnswer(ctx context.Context, xml string) time.Time {
	mac := regexp.MustCompile(`52:54:00:[0-9a-f:]{8}`).FindString(xml)
	lease := regexp.MustCompile(`"ip-address": "([0-9.]+)",\s+"mac-address": "` + mac)
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		leases, _ := os.ReadFile("/var/lib/libvirt/dnsmasq/virbr0.status")
		found := lease.FindSubmatch(leases)
		if found == nil {
			continue
		}
		conn, err := net.DialTimeout("tcp", string(found[1])+":22", 100*time.Millisecond)
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
		if err == nil {
			return time.Now()
		}
	}
	return time.Time{}
}

// BenchmarkOutput measures how fast a script's output comes out of a guest, ours
// and by ssh, and what memory that takes.
func BenchmarkOutput(b *testing.B) {
	const size = 64 << 20
	l := benchLab(b)
	guest := l.ready(b, l.spec("output"))
	line := fmt.Sprintf("head -c %d /dev/zero", size)
	b.Run("driver", func(b *testing.B) {
		b.SetBytes(size)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for b.Loop() {
			w := &countingWriter{}
			if _, err := guest.Run(b.Context(), guestssh.Command{Line: line, Stdout: w}); err != nil || w.n != size {
				b.Fatalf("%d bytes, error %v", w.n, err)
			}
		}
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(int64(after.Sys)-int64(before.Sys))/(1<<20), "MiB-more-memory")
	})
	b.Run("ssh", func(b *testing.B) {
		askpass := filepath.Join(l.dir, "askpass")
		if err := os.WriteFile(askpass, []byte("#!/bin/sh\necho vagrant\n"), 0o755); err != nil {
			b.Fatal(err)
		}
		host, port, _ := net.SplitHostPort(guest.Record().Address)
		b.SetBytes(size)
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), "ssh", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "vagrant@"+host, line)
			cmd.Env = append(os.Environ(), "SSH_ASKPASS="+askpass, "SSH_ASKPASS_REQUIRE=force")
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			n, _ := io.Copy(io.Discard, out)
			if err := cmd.Wait(); err != nil || n != size {
				b.Fatalf("%d bytes, error %v\n%s", n, err, stderr.String())
			}
		}
	})
}

type countingWriter struct{ n int }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n += len(p)
	return len(p), nil
}
