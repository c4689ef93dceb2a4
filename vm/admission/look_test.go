package admission

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gitlab-sardine-executor/vm/virt/virttest"
)

// What status shows of the queue: the machine that is starting, the first that waits, and
// how many wait behind it.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	if state, err := Look(dir); err != nil || len(state.Starting) != 0 || state.First != "" || state.Behind != 0 {
		t.Fatalf("nothing waits: %+v, %v", state, err)
	}
	h := virttest.OpenEmpty(t)
	policy := Policy{Slots: 1, Reserve: -1, Timeout: time.Minute}
	release, err := policy.Admit(t.Context(), h, "sardine-0-1", 1<<20, dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for _, name := range []string{"sardine-0-2", "sardine-0-3", "sardine-0-4"} {
		go func() {
			release, err := policy.Admit(ctx, h, name, 1<<20, dir)
			if err == nil {
				err = release()
			}
			ended <- err
		}()
	}
	var state State
	for deadline := time.Now().Add(30 * time.Second); state.First == "" || state.Behind < 2; time.Sleep(20 * time.Millisecond) {
		if state, err = Look(dir); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %+v", state)
		}
	}
	if len(state.Starting) != 1 || state.Starting["sardine-0-1"] != 1<<20 || state.Behind != 2 {
		t.Errorf("got %+v", state)
	}
	cancel()
	for range 3 {
		if err := <-ended; err == nil {
			t.Error("two machines were admitted to one slot")
		}
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}

// A process that was killed while it waited leaves its name in the file.
func TestLookIgnoresTheDead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, lockFile), []byte("sardine-0-9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if state, err := Look(dir); err != nil || state.First != "" || state.Behind != 0 {
		t.Errorf("got %+v, %v", state, err)
	}
}
