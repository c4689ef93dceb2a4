//go:build boot && nightly

package boot

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/network"
)

// Waiting for a guest costs hardly any processor time, which the guest needs: neither of
// the driver, nor of libvirt's daemon, nor of the passt that holds what connects to a
// guest that still boots, also when the driver has given up.
func TestWaitingCostsNoProcessor(t *testing.T) {
	eachMode(t, func(t *testing.T, l *lab) {
		name := network.User
		if l.mode == "system" { // libvirt has to be asked for an address
			name = foreign(t, l)
		}
		const wait = 10 * time.Second
		spec, own, daemons := l.wait(t, name, wait)
		t.Logf("in %v the driver used %v, libvirtd %v", wait, own, daemons)
		if share := float64(own+daemons) / float64(wait); share > 0.03 {
			t.Errorf("the driver and libvirtd used %.1f %% of a processor to wait, want at most 3 %%", 100*share)
		}
		if spec.Network != network.User {
			return
		}
		time.Sleep(2 * time.Second)
		used := processTime(t, passtOf(t, spec))
		t.Logf("passt used %v", used)
		if used > 500*time.Millisecond {
			t.Errorf("passt has used %v of the processor for connections that it holds, in 12 s", used)
		}
	})
}

// passtOf is the process of the machine's passt.
func passtOf(t testing.TB, spec vm.Spec) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(spec.JobDir, "passt.json"))
	if err != nil {
		t.Fatal(err)
	}
	var note struct {
		PID int
		Pid string // else the path of the pid file would match PID
	}
	if err := json.Unmarshal(text, &note); err != nil {
		t.Fatal(err)
	}
	return note.PID
}

// A server that needs long for its greeting, as an emulated guest's sshd does, gets the
// time for it, and not a call after the other.
func TestGuestThatGreetsLate(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		late := variant{
			arguments: "rdinit=/usr/bin/late-init",
			files: map[string]string{
				"usr/bin/late-init": `#!/usr/bin/busybox sh
sed 's,^dropbear .*,nc -ll -p 22 -e /usr/bin/late \&,' /init >/tmp/init
exec sh /tmp/init
`,
				"usr/bin/late": `#!/usr/bin/busybox sh
echo "guest: a call" >/dev/console
sleep 5
exec dropbear -i
`,
			},
		}
		spec := l.spec("late", late.of(t, l))
		l.ready(t, spec)
		console, err := os.ReadFile(filepath.Join(spec.JobDir, vm.ConsoleFile))
		if err != nil {
			t.Fatal(err)
		}
		calls := strings.Count(string(console), "guest: a call")
		t.Logf("%d calls", calls)
		if calls > 2*8 { // those that were under way, and some after
			t.Errorf("the guest was called %d times", calls)
		}
	})
}
