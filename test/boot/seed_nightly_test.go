//go:build boot && nightly

package boot

import (
	"context"
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
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/guestssh"
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

// TestFullGuest boots a Debian as people run it in clouds: with cloud-init, systemd and OpenSSH,
// and no user who can log in. The seed must let the driver in, and then be gone.
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

// Clones of such a guest let us in by the key that it was given when it booted for its
// snapshot, and not by their own; nothing in it bears the name of a job.
func TestFullGuestFromASnapshot(t *testing.T) {
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
			t.Fatalf("%v\n%s", err, console.TailOf(err))
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
				t.Fatalf("%v\n%s", err, console.TailOf(err))
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

// debianIgnition is Ignition in Debian's package ignition, which an initramfs would call.
const debianIgnition = "/usr/lib/dracut/modules.d/30ignition/ignition"

// runIgnition lets Ignition set up a copy of the guest without what systemd has set up.
const runIgnition = `set -e
sudo modprobe -a overlay qemu_fw_cfg
sudo mkdir /run/o
sudo mount -t tmpfs none /run/o
sudo mkdir /run/o/upper /run/o/work /run/o/root
sudo mount -t overlay -o lowerdir=/,upperdir=/run/o/upper,workdir=/run/o/work none /run/o/root
sudo chroot /run/o/root sh -ec 'sed -i /^ci:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow; rm -rf /home/ci /etc/ssh/ssh_host_* /etc/sudoers.d/90-* /etc/hostname'
# Debian's Ignition relabels for SELinux, which this guest does not have.
sudo sh -ec 'cd /run/o/root/etc; mkdir -p selinux/none/contexts/files /run/o/bin; echo SELINUXTYPE=none >selinux/config; : >selinux/none/contexts/files/file_contexts
printf "#!/bin/sh\nexec cat >/dev/null\n" >/run/o/bin/setfiles; chmod 755 /run/o/bin/setfiles'
for stage in fetch files; do
	sudo env PATH=/run/o/bin:/usr/sbin:/usr/bin:/sbin:/bin /var/tmp/ignition -platform qemu -stage $stage -root /run/o/root -log-to-stdout >/var/tmp/ignition.log 2>&1 || { grep CRITICAL /var/tmp/ignition.log; exit 1; }
done
cd /run/o/root
sudo cmp etc/ssh/ssh_host_ed25519_key /run/credentials/@system/sardine.ssh_host_key
sudo stat -c '%a %U %n' etc/ssh/ssh_host_ed25519_key etc/sudoers.d/90-gitlab-sardine-executor
sudo cat etc/hostname
sudo chroot . sudo -u ci sudo -n id -un
sudo sh -c 'cat home/ci/.ssh/authorized_keys.d/ignition home/ci/.ssh/authorized_keys 2>/dev/null | cut -d" " -f2'
sudo cut -d' ' -f2 /home/ci/.ssh/authorized_keys`

// A Debian without cloud-init lets us in by systemd's credentials. Ignition finds in the same
// machine what makes the same user and the same keys.
func TestFullGuestWithoutCloudInit(t *testing.T) {
	showFullGuest(t)
	systemOnly(t, func(t *testing.T, l *lab) {
		seed, err := seed.New("")
		if err != nil {
			t.Fatal(err)
		}
		spec := l.spec("credentials", fullGuest(seed), func(s *vm.Spec) {
			s.Disks = []disk.Disk{{Name: "full.raw", Path: fullGuestBooting(t, l, "cloud-init=disabled"), Format: "raw", VirtualSize: 1466 << 20}}
		})
		guest := l.start(t, spec)
		pinned := guest.Record().HostKey
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := guest.WaitReady(ctx, seed.Login()); err != nil {
			t.Fatalf("%v\n%s", err, console.TailOf(err))
		}
		if guest.Record().HostKey != pinned || pinned == "" {
			t.Errorf("the host key is %q, want %q", guest.Record().HostKey, pinned)
		}
		if out, _ := script(t, guest, "id -un; sudo -n id -un; ls /run/cloud-init/instance-data.json 2>/dev/null"); out != "ci\nroot\n" {
			t.Errorf("the guest says %q", out)
		}
		ignition, err := os.Open(debianIgnition)
		if err != nil {
			t.Fatalf("%v; run: make nightly-deps", err)
		}
		defer ignition.Close()
		if status, err := guest.Run(ctx, guestssh.Command{Line: "cat >/var/tmp/ignition && chmod 755 /var/tmp/ignition", Stdin: ignition}); err != nil || status != 0 {
			t.Fatalf("%d, %v", status, err)
		}
		out, status := script(t, guest, runIgnition)
		key := strings.Fields(seed.Login().PublicKey())[1]
		want := "600 root etc/ssh/ssh_host_ed25519_key\n440 root etc/sudoers.d/90-gitlab-sardine-executor\n" + spec.Name + "\nroot\n" + key + "\n" + key + "\n"
		if out != want {
			t.Errorf("Ignition (%v):\n%s\nwant:\n%s", status, out, want)
		}
	})
}
