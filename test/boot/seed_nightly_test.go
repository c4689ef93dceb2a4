//go:build boot && nightly

package boot

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/seed"
)

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
