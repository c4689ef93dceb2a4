package space

import (
	"os"
	"path/filepath"
	"testing"
)

// TestEarlier: a pull leaves the space to those that began before it in the same store, and
// that run.
func TestEarlier(t *testing.T) {
	store := t.TempDir()
	announce := func(dir, name string) *Announcement {
		t.Helper()
		partial := filepath.Join(dir, PartialPrefix+name)
		if err := os.Mkdir(partial, 0o755); err != nil {
			t.Fatal(err)
		}
		return Announce(partial, 10<<20)
	}
	first := announce(store, "first")
	second := announce(store, "second")
	for name, test := range map[string]struct {
		pull  *Announcement
		waits bool
	}{
		"the first":        {first, false},
		"the second":       {second, true},
		"in another store": {announce(t.TempDir(), "third"), false},
	} {
		// Without what the announcement itself takes.
		if n := test.pull.Earlier(); (n > 9<<20) != test.waits || n > 10<<20 {
			t.Errorf("%s leaves %d bytes to others", name, n)
		}
	}
	// A pull that was killed has left its announcement, without a lock.
	if err := first.Lock.Close(); err != nil {
		t.Fatal(err)
	}
	if n := second.Earlier(); n != 0 {
		t.Errorf("one that has died counts: %d bytes", n)
	}
	if err := second.End(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(store, PartialPrefix+"second", pullFile)); !os.IsNotExist(err) {
		t.Errorf("the announcement is still there: %v", err)
	}
}
