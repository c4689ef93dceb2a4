//go:build boot

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
)

// A guest that cannot become ready ends the wait at once, long before the
// deadline, and what it last said is at hand. (By day, one that panics stands for the rest,
// and test/e2e has one with another password.)
func TestGuestThatWillNotBeReady(t *testing.T) {
	for _, test := range []struct {
		name    string
		guest   variant
		login   guestssh.Login
		want    error
		console string
	}{
		{"powers off", variant{arguments: "rdinit=/usr/bin/poweroff -- -f"}, guestLogin, errdefs.ErrGuestStopped, "reboot: Power down"},
		{"panics", variant{arguments: "rdinit=/usr/bin/false panic=0"}, guestLogin, errdefs.ErrGuestStopped, "Kernel panic"},
		{"panics and restarts", variant{arguments: "rdinit=/usr/bin/false"}, guestLogin, errdefs.ErrGuestStopped, ""},
		{"has another password", variant{}, guestssh.Login{User: "vagrant", Password: "guess"}, guestssh.ErrLogin, "guest:"},
	} {
		if test.name != "panics" && !nightly {
			continue
		}
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			sessionOnly(t, func(t *testing.T, l *lab) {
				guest := l.start(t, l.spec("unready", test.guest.of(t, l)))
				began := time.Now()
				err := waitReady(t, guest, test.login)
				t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
				if !errors.Is(err, test.want) {
					t.Fatalf("got %v, want %v", err, test.want)
				}
				if tail := console.TailOf(err); !strings.Contains(tail, test.console) {
					t.Errorf("the console's last lines lack %q:\n%s", test.console, tail)
				}
			})
		})
	}
}

// A guest that runs and has no SSH server is given up at the deadline, and the
// error says how far it came.
func TestGuestWithoutSSH(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		silent := variant{files: map[string]string{"usr/sbin/dropbear": "#!/usr/bin/busybox sh\necho no server here\n"}}
		spec := l.spec("silent", silent.of(t, l))
		guest := l.start(t, spec)
		// However slow the host is, the guest has come as far as it comes.
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			console, _ := os.ReadFile(filepath.Join(spec.JobDir, vm.ConsoleFile))
			if strings.Contains(string(console), "no server here") {
				break
			}
			if time.Since(began) > 2*time.Minute {
				t.Fatalf("the guest does not come up:\n%s", console)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err := guest.WaitReady(ctx, guestLogin)
		if !errors.Is(err, errdefs.ErrNoAnswer) || !strings.Contains(err.Error(), "SSH server") {
			t.Errorf("got %v, want %v and a word on its SSH server", err, errdefs.ErrNoAnswer)
		}
		if tail := console.TailOf(err); !strings.Contains(tail, "no server here") {
			t.Errorf("console:\n%s", tail)
		}
	})
}

// BenchmarkWaiting measures what share of a processor the driver and libvirtd use while they
// wait for a guest that boots and does not answer, on each network.
func BenchmarkWaiting(b *testing.B) {
	for _, name := range []string{network.User, "default", "foreign"} {
		b.Run("network="+name, func(b *testing.B) {
			l := benchLab(b)
			if name == "foreign" {
				foreign(b, l)
			}
			const wait = 30 * time.Second
			var own, daemons time.Duration
			for b.Loop() {
				spec, o, d := l.wait(b, name, wait)
				own, daemons = own+o, daemons+d
				l.virsh(b, "destroy", spec.Name)
			}
			all := float64(wait) * float64(b.N) / 100
			b.ReportMetric(float64(own)/all, "%-driver")
			b.ReportMetric(float64(daemons)/all, "%-libvirtd")
		})
	}
}

// wait waits in vain for a guest without an SSH server, and returns the processor time that this
// process and libvirt's daemon used for it.
func (l *lab) wait(t testing.TB, network string, wait time.Duration) (spec vm.Spec, own, daemons time.Duration) {
	t.Helper()
	mute := variant{
		arguments: "rdinit=/usr/bin/mute", // which the kernel hands arguments of its own
		files:     map[string]string{"usr/bin/mute": "#!/usr/bin/busybox sh\nexec sleep 1000\n"},
	}
	spec = l.spec("mute", mute.of(t, l), onNetwork(network))
	guest := l.start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	daemon := daemonOf(t)
	before, daemonBefore := ownTime(t), processTime(t, daemon)
	if err := guest.WaitReady(ctx, guestLogin); !errors.Is(err, errdefs.ErrNoAnswer) {
		t.Errorf("got %v, want %v", err, errdefs.ErrNoAnswer)
	}
	return spec, ownTime(t) - before, processTime(t, daemon) - daemonBefore
}

// foreign makes a libvirt network on which libvirt assigns no addresses, gone after the test.
func foreign(t testing.TB, l *lab) (name string) {
	t.Helper()
	file := filepath.Join(l.dir, "foreign.xml")
	if err := os.WriteFile(file, []byte(`<network><name>foreign</name><bridge name="virbr2" stp="off" delay="0"/></network>`), 0o644); err != nil {
		t.Fatal(err)
	}
	l.virsh(t, "net-create", file)
	t.Cleanup(func() { l.virsh(t, "net-destroy", "foreign") })
	return "foreign"
}

// ownTime is how long this process has had a processor.
func ownTime(t testing.TB) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// daemonOf is the process of this user's libvirt daemon.
func daemonOf(t testing.TB) int {
	t.Helper()
	return pgrep(t, "-x", "-u", strconv.Itoa(os.Geteuid()), "libvirtd|virtqemud")
}

func pgrep(t testing.TB, args ...string) (pid int) {
	t.Helper()
	found := strings.Fields(run(t, "pgrep", args...))
	if len(found) != 1 {
		t.Fatalf("pgrep %q: %q", args, found)
	}
	pid, err := strconv.Atoi(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// processTime is how long a process has had a processor.
func processTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	// proc(5): utime and stime are fields 14 and 15, in ticks, of which Linux has 100
	// in a second on all that we run on; the second field may hold spaces.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / 100
}

// QEMU pauses a guest whose overlay cannot grow: it would wait for ever.
func TestGuestOnAFullDisk(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		full := variant{files: map[string]string{"usr/sbin/dropbear": `#!/usr/bin/busybox sh
insmod /usr/lib/modules/virtio_blk.ko
echo filling the disk
dd if=/dev/urandom of=/dev/vda bs=64k
`}}
		spec := l.spec("full", full.of(t, l))
		if err := os.MkdirAll(spec.OverlayDir, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", spec.OverlayDir, "tmpfs", 0, "size=2m,mode=0711"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(spec.OverlayDir, unix.MNT_DETACH) })
		guest := l.start(t, spec)
		err := waitReady(t, guest, guestLogin)
		if !errors.Is(err, errdefs.ErrGuestStopped) || !strings.Contains(err.Error(), "I/O error") {
			t.Errorf("got %v, want %v by an I/O error", err, errdefs.ErrGuestStopped)
		}
	})
}
