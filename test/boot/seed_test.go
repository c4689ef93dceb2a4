//go:build boot

package boot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/host"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/seed"
)

// fullGuestName is the name of the disk of a full guest.
const fullGuestName = "full-guest.qcow2"

// showFullGuest puts the disk where QEMU's user may look.
func showFullGuest(t *testing.T) {
	t.Helper()
	if os.Getenv(modeVariable) != "" {
		return
	}
	within := filepath.Join(host.TempDir, fullGuestName)
	if err := os.WriteFile(within, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(testbed.FullGuest(t), within, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(within, unix.MNT_DETACH) })
}

// fullGuest is a machine of it.
func fullGuest(seed *seed.Seed) func(*vm.Spec) {
	return func(s *vm.Spec) {
		s.Disks = []disk.Disk{{Name: fullGuestName, Path: filepath.Join(host.TempDir, fullGuestName), Format: "qcow2", VirtualSize: 1466 << 20}}
		s.Memory, s.CPUs, s.Seed = 1<<30, 1, seed
	}
}

// A Debian with cloud-init, systemd and OpenSSH, as people run it in clouds, in
// which nobody can log in: the seed must let us in, and be gone then.
func TestFullGuest(t *testing.T) {
	showFullGuest(t)
	systemOnly(t, func(t *testing.T, l *lab) {
		seed, err := seed.New("")
		if err != nil {
			t.Fatal(err)
		}
		spec := l.spec("full", fullGuest(seed))
		guest := l.start(t, spec)
		pinned := guest.Record().HostKey
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		defer cancel()
		if err := guest.WaitReady(ctx, seed.Login()); err != nil {
			text, _ := os.ReadFile(filepath.Join(spec.JobDir, vm.ConsoleFile))
			t.Fatalf("%v\n%s", err, text)
		}
		t.Logf("ready after %v at %s", time.Since(began).Round(time.Second), guest.Record().Address)
		if guest.Record().HostKey != pinned || pinned == "" {
			t.Errorf("the host key is %q, want %q", guest.Record().HostKey, pinned)
		}
		for _, check := range []struct{ what, script, want string }{
			{"user", "id -un; sudo -n id -un", "ci\nroot\n"},
			{"user of systemd-sysusers", "getent passwd ci", "ci:x:1000:1000:GitLab job:/home/ci:/bin/sh\n"},
			{"key of systemd-tmpfiles", "sudo ls /etc/sudoers.d/90-gitlab-sardine-executor", "/etc/sudoers.d/90-gitlab-sardine-executor\n"},
			{"host key by fw_cfg", "sudo cmp /run/credentials/@system/sardine.ssh_host_key /etc/ssh/ssh_host_ed25519_key && echo same", "same\n"},
			{"other host keys", "cd /etc/ssh && echo ssh_host_*_key", "ssh_host_ed25519_key\n"},
			{"drive", "sudo head -c 1 /dev/sr0 2>&1", "head: cannot open '/dev/sr0' for reading: No medium found\n"},
			{"credentials for the user", "cat /run/credentials/@system/* 2>/dev/null; cat /sys/firmware/qemu_fw_cfg/by_name/opt/*/*/raw 2>/dev/null", ""},
		} {
			out, _ := script(t, guest, check.script)
			if out != check.want {
				t.Errorf("%s: got %q, want %q", check.what, out, check.want)
			}
		}
		if source := l.virsh(t, "domblklist", spec.Name); strings.Contains(source, "seed") {
			t.Errorf("the seed is still in its drive:\n%s", source)
		}
		scripts(t, guest) // with OpenSSH
		if out, _ := script(t, guest, "systemctl is-active cloud-init"); out == "active\n" {
			out, _ = script(t, guest, "sudo cloud-init status --wait --long")
			t.Log(out)
		}
	})
}
