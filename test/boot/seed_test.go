//go:build boot

package boot

import (
	"context"
	"flag"
	"fmt"
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
		s.Memory, s.CPUs, s.Seed = 1<<30, 2, seed
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

var fullSnapshotFlag = flag.Bool("full-snapshot", false, "start a full guest from a snapshot as well, which takes some minutes")

// Clones of such a guest let us in by the key that it was given when it booted for its
// snapshot, and not by their own; nothing in it bears the name of a job.
func TestFullGuestFromASnapshot(t *testing.T) {
	if os.Getenv(modeVariable) == "" && !*fullSnapshotFlag {
		return
	}
	showFullGuest(t)
	systemOnly(t, func(t *testing.T, l *lab) {
		newSeed := func() *seed.Seed {
			seed, err := seed.New("")
			if err != nil {
				t.Fatal(err)
			}
			return seed
		}
		seed := newSeed()
		spec := l.spec("maker", withSnapshots(l), fullGuest(seed))
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		defer cancel()
		began := time.Now()
		if err := vm.MakeSnapshot(ctx, l.host, spec, seed.Login(), 5*time.Minute, func() {}); err != nil {
			t.Fatalf("%v\n%s", err, vm.ConsoleOf(err))
		}
		t.Logf("made a snapshot in %s", time.Since(began).Round(time.Second))
		for _, name := range []string{"one", "two"} {
			seed := newSeed()
			guest := l.start(t, l.spec(name, withSnapshots(l), fullGuest(seed)))
			began := time.Now()
			if !guest.Resumed() {
				t.Fatalf("%s boots: %q", name, guest.Notes)
			}
			if err := waitReady(t, guest, guest.Login(seed.Login())); err != nil {
				t.Fatalf("%v\n%s", err, vm.ConsoleOf(err))
			}
			t.Logf("%s ready after %s", name, time.Since(began).Round(time.Millisecond))
			asked := time.Now()
			out, _ := script(t, guest, "id -un; sudo -n id -un; hostname; systemctl is-system-running; date +%s; ls ~; touch ~/"+name)
			var user, root, hostname, state, seconds string
			if n, err := fmt.Sscan(out, &user, &root, &hostname, &state, &seconds); n != 5 {
				t.Fatalf("%s says %q: %v", name, out, err)
			}
			if user != "ci" || root != "root" || hostname != "sardine" || state == "starting" || strings.Contains(out, "one") {
				t.Errorf("%s says %q", name, out)
			}
			checkClock(t, name, seconds, asked)
			scripts(t, guest)
		}
	})
}
