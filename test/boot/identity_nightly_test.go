//go:build boot && nightly

package boot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	testhost "gitlab-sardine-executor/internal/testbed/host"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/seed"
)

// TestTwins of a whole Debian: systemd-networkd names itself to DHCP by the machine-id.
func TestFullGuestTwins(t *testing.T) {
	showFullGuest(t)
	systemOnly(t, func(t *testing.T, l *lab) {
		network, _ := narrow(t, l)
		handed, err := seed.New("")
		if err != nil {
			t.Fatal(err)
		}
		image := func(s *vm.Spec) {
			fullGuest(handed)(s)
			s.Disks = []disk.Disk{{Name: "full.raw", Path: fixedMachineID(t, l), Format: "raw", VirtualSize: 1466 << 20}}
		}
		specs := []vm.Spec{l.spec("first", image, onNetwork(network)), l.spec("second", image, onNetwork(network))}
		var guests []*vm.Started
		for _, spec := range specs {
			guests = append(guests, l.start(t, spec))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
		defer cancel()
		ids := map[string]bool{}
		for _, guest := range guests {
			if err := guest.WaitReady(ctx, handed.Login()); err != nil {
				t.Fatalf("%v\n%s", err, console.TailOf(err))
			}
			mark(t, guest)
			id, _ := script(t, guest, "cat /etc/machine-id")
			ids[id] = true
		}
		if len(ids) != 1 || guests[0].Record().HostKey != guests[1].Record().HostKey {
			t.Errorf("they have the machine-ids %v and different host keys, so that the rest shows nothing", ids)
		}
		if leases := l.virsh(t, "net-dhcp-leases", network); strings.Contains(leases, "192.168.") {
			t.Logf("leases:\n%s", leases) // one: dnsmasq has forgotten the other, which has its address all the same
		}
		// Twice: each asks for its address again the first time.
		for range 2 {
			for _, guest := range guests {
				asUser := l.find(t, guest)
				if err := asUser.Connect(t.Context(), handed.Login()); err != nil {
					t.Errorf("log in to %s again: %v", guest.Name(), err)
					continue
				}
				if out, _ := script(t, asUser, "cd /sys/class/net && sudo networkctl renew e* 2>&1; cat /tmp/me"); out != guest.Name()+"\n" {
					t.Errorf("what is for %s runs in the machine of %q", guest.Name(), out)
				}
			}
		}
	})
}

// fixedMachineID is the disk of a full guest with a machine-id.
func fixedMachineID(t *testing.T, l *lab) string {
	return fullGuestBooting(t, l, "systemd.machine_id=0123456789abcdef0123456789abcdef")
}

// fullGuestBooting is the disk of a full guest with one more argument of its kernel: the boot
// partition is the one that can be written without a loop device.
func fullGuestBooting(t *testing.T, l *lab, argument string) string {
	t.Helper()
	raw := filepath.Join(l.dir, "full.raw")
	if _, err := os.Stat(raw); err == nil {
		return raw
	}
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", filepath.Join(testhost.TempDir, fullGuestName), raw)
	const boot = "@@1M"
	config := run(t, "mtype", "-i", raw+boot, "::syslinux.cfg")
	config = strings.Replace(config, "console=ttyS0", "console=ttyS0 "+argument, 1)
	file := filepath.Join(l.dir, "syslinux.cfg")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-o", "-i", raw+boot, file, "::syslinux.cfg")
	return raw
}
