//go:build boot && nightly

package boot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/host"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/seed"
)

// slowConfig makes cloud-init wait, after the SSH server has started, until the test lets it
// go on.
const slowConfig = `runcmd:
- [sh, -c, "for n in $(seq 300); do [ -e /run/go ] && break; sleep 1; done; touch /run/went"]
`

// showSlowGuest makes a full guest of Debian 13 with slowConfig, where QEMU's user may look.
func showSlowGuest(t *testing.T) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		return
	}
	dir, within := t.TempDir(), filepath.Join(host.TempDir, fullGuestName)
	raw, file := filepath.Join(dir, "full.raw"), filepath.Join(dir, "slow.cfg")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", testbed.FullGuestTrixie(t), raw)
	if err := os.WriteFile(file, []byte(slowConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	// The second partition: 1 MiB, and the 64 MiB of the first.
	run(t, "debugfs", "-w", "-R", "write "+file+" /etc/cloud/cloud.cfg.d/99-slow.cfg", raw+"?offset=68157440")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, within)
	t.Cleanup(func() { os.Remove(within) })
	if err := os.Chmod(within, 0o444); err != nil {
		t.Fatal(err)
	}
}

// TestFullGuestReady makes one machine of a whole Debian 13, as people run it in clouds, and
// looks at what only such a guest does: a boot that goes on after the login, OpenSSH with
// penalties, expired passwords.
func TestFullGuestReady(t *testing.T) {
	showSlowGuest(t)
	systemOnly(t, func(t *testing.T, l *lab) {
		seed, err := seed.New("")
		if err != nil {
			t.Fatal(err)
		}
		spec := l.spec("ready", fullGuest(seed), func(s *vm.Spec) { s.LoginGrace = 40 * time.Second })
		guest := l.start(t, spec)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := guest.WaitReady(ctx, seed.Login()); err != nil {
			text, _ := os.ReadFile(filepath.Join(spec.JobDir, vm.ConsoleFile))
			t.Fatalf("%v\n%s", err, text)
		}
		t.Logf("the login succeeded after %v", time.Since(began).Round(time.Second))
		t.Run("end_of_boot", func(t *testing.T) { checkEndOfBoot(t, guest) })
		t.Run("canceled", func(t *testing.T) { checkCanceled(t, l, guest, seed.Login()) })
		private, _ := script(t, guest, `sudo -n sh -c 'echo "PasswordAuthentication yes" >/etc/ssh/sshd_config.d/00-test.conf; systemctl restart ssh
useradd -m late; useradd -m expired; echo expired:secret | chpasswd; chage -d 0 expired
mkdir ~expired/.ssh; ssh-keygen -q -N "" -t ed25519 -f /tmp/key; cp /tmp/key.pub ~expired/.ssh/authorized_keys; chown -R expired ~expired; cat /tmp/key'`)
		t.Run("late_password", func(t *testing.T) { checkLatePassword(t, l, guest, seed.Login()) })
		t.Run("expired_password", func(t *testing.T) { checkExpired(t, l, guest, private) })
	})
}

// settle is what prepare does after the login.
func settle(ctx context.Context, guest guestshell.Guest, waitFor string) error {
	dir, err := os.MkdirTemp("", "settle")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	settings := config.Resolved{Shell: "bash", WaitFor: waitFor, GuestBuildsDir: "/builds", GuestCacheDir: "/cache"}
	return guestshell.Settle(ctx, guest, settings, dir, joblog.New(io.Discard))
}

// checkEndOfBoot wants prepare to wait for cloud-init, unless the settings say otherwise.
func checkEndOfBoot(t *testing.T, guest *vm.Started) {
	const went = "[ -e /run/went ] && echo went || echo waits"
	if err := settle(t.Context(), guest, "login"); err != nil {
		t.Fatal(err)
	}
	if out, _ := script(t, guest, went); out != "waits\n" {
		t.Errorf(`with wait_for = "login" cloud-init had ended: %q`, out)
	}
	short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := settle(short, guest, config.WaitBoot); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its boot has not ended") {
		t.Errorf("before the end of the boot: %v", err)
	}
	settled := make(chan error, 1)
	go func() { settled <- settle(t.Context(), guest, config.WaitBoot) }()
	select {
	case err := <-settled:
		t.Fatalf("prepare has not waited for cloud-init: %v", err)
	case <-time.After(5 * time.Second): // longer than a guest that does not wait takes
	}
	script(t, guest, "sudo -n touch /run/go")
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
	if out, _ := script(t, guest, went+"; systemctl is-system-running"); !strings.HasPrefix(out, "went\n") || strings.Contains(out, "starting") {
		t.Errorf("after the end of the boot: %q", out)
	}
}

// checkCanceled wants the processes of a canceled script to be gone when the next one starts:
// OpenSSH hands on the signal to all of them.
func checkCanceled(t *testing.T, l *lab, guest *vm.Started, login guestssh.Login) {
	found := l.find(t, guest)
	if err := found.Connect(t.Context(), login); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		text := strings.NewReader("sleep 1001 & (sleep 1002; true) & echo running; sleep 1003 | cat; echo went on\n")
		_, err := guestshell.For("bash").RunScript(ctx, found, text, guestshell.Options{Merged: true}, w, w)
		ended <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, len("running\n"))); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the canceled script: %v", err)
	}
	if out, _ := script(t, guest, "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p 2>/dev/null; echo; done | grep '^sleep 100'"); out != "" {
		t.Errorf("after the script was canceled these run:\n%s", out)
	}
}

// checkLatePassword wants a guest that sets a password late to be ready then: refused logins
// are so far apart that OpenSSH drops no connection for them.
func checkLatePassword(t *testing.T, l *lab, guest *vm.Started, login guestssh.Login) {
	script(t, guest, "sudo -n sh -c 'setsid sh -c \"sleep 20; echo late:secret | chpasswd\" >/dev/null 2>&1 </dev/null &'")
	if err := waitReady(t, guest, guestssh.Login{User: "late", Password: "secret"}); err != nil {
		t.Errorf("the password was set after 20 s: %v", err)
	}
	again := l.find(t, guest)
	if err := again.Connect(t.Context(), login); err != nil {
		t.Fatal(err)
	}
	out, _ := script(t, again, "sudo -n journalctl -u ssh")
	if strings.Contains(out, "drop connection") || strings.Count(out, "Failed password for late") < 3 {
		t.Errorf("want refused logins, and no connection dropped for them:\n%s", out)
	}
}

// checkExpired wants a password that has expired to be found after the login, by whatever
// method, at the latest.
func checkExpired(t *testing.T, l *lab, guest *vm.Started, private string) {
	key := filepath.Join(l.dir, "key")
	if err := os.WriteFile(key, []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, login := range map[string]guestssh.Login{
		"password": {User: "expired", Password: "secret"}, "key": {User: "expired", IdentityFile: key},
	} {
		found := l.find(t, guest)
		err := found.Connect(t.Context(), login)
		if err == nil {
			err = settle(t.Context(), found, config.WaitBoot)
		}
		if !errors.Is(err, guestssh.ErrLogin) || !strings.Contains(err.Error(), "the password has expired") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
