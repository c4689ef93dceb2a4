//go:build boot

package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// running starts a script in the guest that says "running" and goes on; how it
// ends is sent to the channel.
func running(t *testing.T, guest instance, text string, keepalive guestssh.Keepalive) <-chan error {
	t.Helper()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		status, err := guest.Run(t.Context(), guestssh.Command{
			Line: "sh", Stdin: strings.NewReader("echo running\n" + text), Stdout: w, Keepalive: keepalive,
		})
		if err == nil && status != 0 {
			err = fmt.Errorf("exit status %d", status)
		}
		w.Close()
		ended <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, len("running\n"))); err != nil {
		t.Fatalf("the script does not start: %v", err)
	}
	go io.Copy(io.Discard, r)
	return ended
}

// stillTime is how long a guest stands still that comes back: longer than passt gives a
// connection with data that its guest does not acknowledge.
const stillTime = 32 * time.Second

// A guest that stands still comes back to its script; one that does not is lost. The guest
// says how it ended: a reboot and a power-off are told from the end of its machine by
// another hand.
func TestGuestEndsDuringAScript(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		guest := l.ready(t, l.spec("lost", rebootEnds(t)))
		pid := l.qemu(t, guest.Name())
		stop := func(signal syscall.Signal) {
			if err := syscall.Kill(pid, signal); err != nil {
				t.Fatal(err)
			}
		}
		if nightly {
			ended := running(t, guest, "sleep 40; echo done", guestssh.Keepalive{})
			stop(syscall.SIGSTOP)
			select {
			case err := <-ended:
				t.Errorf("the guest stands still: got %v", err)
			case <-time.After(stillTime):
			}
			stop(syscall.SIGCONT)
			if err := <-ended; err != nil {
				t.Errorf("the guest stood still: got %v", err)
			}
		}

		ended := running(t, guest, "sleep 1000", guestssh.Keepalive{Interval: time.Second, Timeout: 5 * time.Second})
		stop(syscall.SIGSTOP)
		err := <-ended
		stop(syscall.SIGCONT)
		if !errors.Is(err, guestssh.ErrLost) || !strings.Contains(err.Error(), "no answer for") {
			t.Errorf("QEMU hangs: got %v, want %v", err, guestssh.ErrLost)
		}

		for _, test := range []struct {
			name, script string
			want         error
		}{
			{"reboot", "sudo -n reboot -f", errdefs.ErrRebooted},
			{"poweroff", "sudo -n poweroff -f", errdefs.ErrPoweredOff},
		} {
			if guest == nil { // this guest makes new host keys when it boots
				guest = l.ready(t, l.spec(test.name))
			}
			again := l.reconnect(t, guest.Name())
			guest = nil
			if err := <-running(t, again, test.script+"; sleep 100", guestssh.Keepalive{}); !errors.Is(err, test.want) {
				t.Errorf("%s: got %v, want %v", test.name, err, test.want)
			}
		}
	})
}

// rebootEnds is an image whose domain XML ends the machine with a reboot, as that of an
// installation does.
func rebootEnds(t *testing.T) func(*vm.Spec) {
	t.Helper()
	return func(s *vm.Spec) {
		opts := domainxml.DefaultOptions{}
		for _, d := range s.Disks {
			opts.Disks = append(opts.Disks, domainxml.DefaultDisk{Disk: domainxml.Disk{Name: d.Name, Format: d.Format}})
		}
		d, err := domainxml.Default(opts)
		if err != nil {
			t.Fatal(err)
		}
		d.OnReboot = "destroy"
		text, err := d.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		s.DomainXML = []byte(text)
	}
}

// reconnect finds a machine and logs in to its guest, which may be booting.
func (l *lab) reconnect(t *testing.T, name string) *vm.Instance {
	t.Helper()
	found, err := vm.Find(t.Context(), l.host, name, filepath.Join(l.dir, "jobs", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { found.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := found.Connect(ctx, guestLogin); err != nil {
		t.Fatal(err)
	}
	return found
}

// A machine that libvirt is told to destroy did not power off.
func TestMachineIsDestroyedDuringAScript(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		guest := l.ready(t, l.spec("destroyed"))
		ended := running(t, l.reconnect(t, guest.Name()), "sleep 1000", guestssh.Keepalive{})
		l.virsh(t, "destroy", guest.Name())
		if err := <-ended; !errors.Is(err, errdefs.ErrGuestStopped) || errors.Is(err, errdefs.ErrPoweredOff) || !strings.Contains(err.Error(), "destroyed") {
			t.Errorf("got %v, want %v", err, errdefs.ErrGuestStopped)
		}
	})
}

// qemu is the process of a machine.
func (l *lab) qemu(t *testing.T, name string) int {
	t.Helper()
	dir := map[string]string{"system": "/run", "session": os.Getenv("XDG_RUNTIME_DIR")}[l.mode]
	text, err := os.ReadFile(filepath.Join(dir, "libvirt", "qemu", map[string]string{"session": "run"}[l.mode], name+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// restartLibvirtd ends the system's libvirtd and starts it again.
func restartLibvirtd(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("/run/libvirtd.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for syscall.Kill(pid, 0) == nil {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("libvirtd does not end")
		}
	}
	run(t, "sh", "-c", "libvirtd --daemon >/dev/null 2>&1")
}

// The ways to log in that need no password, with programs of OpenSSH: ssh-keygen made the
// key, and ssh-agent keeps the other one. Then scripts, with the test guest's dropbear.
func TestKeyLogins(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		inFile, inAgent, foreign := filepath.Join(l.dir, "file"), filepath.Join(l.dir, "agent"), filepath.Join(l.dir, "foreign")
		authorized := ""
		for _, path := range []string{inFile, inAgent, foreign} {
			run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
			public, err := os.ReadFile(path + ".pub")
			if err != nil {
				t.Fatal(err)
			}
			if path != foreign {
				authorized += string(public)
			}
		}
		socket := filepath.Join(l.dir, "agent.socket")
		keeper := exec.Command("ssh-agent", "-D", "-a", socket)
		if err := keeper.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { keeper.Process.Kill(); keeper.Wait() })
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(socket); err == nil {
				break
			}
			if time.Since(began) > 10*time.Second {
				t.Fatal("ssh-agent does not listen")
			}
		}
		t.Setenv("SSH_AUTH_SOCK", socket)
		run(t, "ssh-add", "-q", inAgent)

		known := variant{files: map[string]string{"home/vagrant/.ssh/authorized_keys": authorized}}
		guest := l.ready(t, l.spec("keys", known.of(t, l)))
		for _, test := range []struct {
			name  string
			login guestssh.Login
			want  error
		}{
			{"key file", guestssh.Login{User: "vagrant", IdentityFile: inFile}, nil},
			{"agent", guestssh.Login{User: "vagrant", Agent: true}, nil},
			{"agent before a wrong password", guestssh.Login{User: "vagrant", Agent: true, Password: "guess"}, nil},
			{"a key that the guest does not know", guestssh.Login{User: "vagrant", IdentityFile: foreign}, guestssh.ErrLogin},
		} {
			t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
				found, err := vm.Find(t.Context(), l.host, guest.Name(), filepath.Join(l.dir, "jobs", guest.Name()))
				if err != nil {
					t.Fatal(err)
				}
				defer found.Close()
				if err := found.Connect(t.Context(), test.login); !errors.Is(err, test.want) {
					t.Fatalf("got %v, want %v", err, test.want)
				} else if err != nil {
					return
				}
				if output, status := script(t, found, "id -un"); output != "vagrant\n" || status != 0 {
					t.Errorf("the guest says %q, status %d", output, status)
				}
			})
		}
		scripts(t, guest)
	})
}

// scripts runs scripts in a guest and looks at what they print and how they end.
func scripts(t *testing.T, guest instance) {
	everyByte := make([]byte, 256)
	for i := range everyByte {
		everyByte[i] = byte(i)
	}
	for _, test := range []struct {
		name, line, stdin string
		status            int
		stdout            string
	}{
		{name: "status", line: "bash --login", stdin: "echo one\nexit 3\n", status: 3, stdout: "one\n"},
		{name: "killed", line: "bash --login", stdin: "kill -9 $$\n", status: 128 + 9},
		{name: "terminated", line: "bash --login", stdin: "kill -TERM $$; kill -9 $$\n", status: 128 + 15},
		{name: "segmentation fault", line: "bash --login", stdin: "kill -SEGV $$\n", status: 128 + 11},
		{name: "user's signal", line: "bash --login", stdin: "kill -USR1 $$\n", status: 128 + 10},
		{name: "child killed", line: "bash --login", stdin: "bash -c 'kill -9 $$'\n", status: 128 + 9},
		{name: "every byte", line: "cat", stdin: string(everyByte), stdout: string(everyByte)},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			var stdout bytes.Buffer
			status, err := guest.Run(t.Context(), guestssh.Command{Line: test.line, Stdin: strings.NewReader(test.stdin), Stdout: &stdout})
			if err != nil || status != test.status || stdout.String() != test.stdout {
				t.Errorf("got %q, status %d, error %v; want %q, %d", stdout.String(), status, err, test.stdout, test.status)
			}
		})
	}
}
