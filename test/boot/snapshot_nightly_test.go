//go:build boot && nightly

package boot

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/snapshot"
)

// The UEFI variables of a machine are part of its snapshot, and each clone has its own.
func TestSnapshotOfUEFI(t *testing.T) {
	systemOnly(t, func(t *testing.T, l *lab) {
		uefi := onUEFI(l.uefiGuest(t))
		makeSnapshot(t, l, l.spec("maker", withSnapshots(l), uefi))
		for _, name := range []string{"one", "two"} {
			if guest := l.ready(t, l.spec(name, withSnapshots(l), uefi)); !guest.Resumed() {
				t.Errorf("%s has booted: %q", name, guest.Notes)
			}
		}
	})
}

// Each kind of machine has its own snapshot, up to a number of them.
func TestSnapshotsOfSeveralMachines(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		two := func(s *vm.Spec) { s.CPUs = 2 }
		for _, test := range []struct {
			change func(*vm.Spec)
			made   bool
		}{{nil, true}, {two, true}, {nil, false}, {two, false}} {
			spec := l.spec("maker", withSnapshots(l))
			if test.change != nil {
				test.change(&spec)
			}
			made := false
			if err := vm.MakeSnapshot(t.Context(), l.host, spec, guestLogin, 2*time.Minute, func() { made = true }); err != nil {
				t.Fatal(err)
			}
			if made != test.made {
				t.Errorf("with %d CPUs a snapshot was made: %v, want %v", spec.CPUs, made, test.made)
			}
		}
		dir := l.spec("maker", withSnapshots(l)).SnapshotDir
		for path, want := range map[string]int{filepath.Dir(dir): 2, filepath.Join(l.dir, "nowhere"): 0} {
			if count, size, err := snapshot.Usage(path); count != want || (size > 20<<20) != (want > 0) || err != nil {
				t.Errorf("%d snapshots of %d bytes, %v; want %d", count, size, err, want)
			}
		}
		for _, name := range []string{"third", "fourth"} {
			run(t, "cp", "-a", firstOf(t, filepath.Join(dir, "*", "snapshot.json")), filepath.Join(dir, name))
		}
		three := l.spec("maker", withSnapshots(l), func(s *vm.Spec) { s.Memory = 300 << 20 })
		err := vm.MakeSnapshot(t.Context(), l.host, three, guestLogin, 2*time.Minute, func() { t.Error("a fifth is made") })
		if !errors.Is(err, snapshot.ErrNone) || !strings.Contains(err.Error(), "has 4 already") {
			t.Errorf("a fifth: %v", err)
		}
	})
}

func firstOf(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if len(found) == 0 || err != nil {
		t.Fatal(found, err)
	}
	return filepath.Dir(found[0])
}

// Where nothing in a guest can renew its random numbers, there is no snapshot, and nobody
// tries it again.
func TestSnapshotOfAGuestThatCannotGoOn(t *testing.T) {
	sessionOnly(t, func(t *testing.T, l *lab) {
		unable := variant{files: map[string]string{"usr/bin/perl": "#!/usr/bin/sh\nexit 1\n"}}.of(t, l)
		for try := range 2 {
			began := false
			spec := l.spec("maker", withSnapshots(l), unable)
			err := vm.MakeSnapshot(t.Context(), l.host, spec, guestLogin, 2*time.Minute, func() { began = true })
			if !errors.Is(err, snapshot.ErrNone) || !strings.Contains(err.Error(), "random numbers") || began != (try == 0) {
				t.Errorf("try %d: began: %v, got %v", try+1, began, err)
			}
		}
		if domains := strings.TrimSpace(l.virsh(t, "list", "--all", "--name")); domains != "" {
			t.Errorf("left: %s", domains)
		}
	})
}
