package vm

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt/virttest"
)

const someMachine = "sardine-0123abcd-4711"

// Concurrent sweeps do not remove a machine that is being started, and no prepare fails.
func TestSweepBesidePrepare(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
	root := t.TempDir()
	clones, jobDir := filepath.Join(root, "clones"), filepath.Join(root, "jobs", someMachine)
	overlays := filepath.Join(clones, someMachine)
	stop, swept := make(chan bool), make(chan int)
	go func() {
		removed := 0
		for {
			select {
			case <-stop:
				swept <- removed
				return
			case <-time.After(rand.N(3 * time.Millisecond)):
			}
			// What a sweep does for a name that it saw in a directory a moment ago.
			found, err := removal.Abandoned(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}, false)
			if err != nil {
				t.Error(err)
			}
			if found {
				removed++
			}
		}
	}()
	made := 0
	for began := time.Now(); time.Since(began) < 2*time.Second; made++ {
		// What prepare does: remove what an earlier attempt left, then begin.
		if err := removal.Remove(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}); err != nil {
			t.Fatal(err)
		}
		job, err := createJobDir(t.Context(), jobDir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(overlays, 0o711); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		for _, dir := range []string{jobDir, overlays} {
			if _, err := os.Stat(dir); err != nil {
				t.Fatalf("of machine %d: %v", made, err)
			}
		}
		if err := job.Unlock(); err != nil { // and then it dies
			t.Fatal(err)
		}
	}
	close(stop)
	t.Logf("%d machines were made, %d sweeps removed something", made, <-swept)
}

// The directory of a machine that another process starts is not removed. What a process that
// died has left there is.
func TestJobDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs", someMachine)
	first, err := createJobDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "left")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if second, err := dirlock.Acquire(t.Context(), dir, 50*time.Millisecond); second != nil || err != nil {
		t.Errorf("two have the directory at once: %v, %v", second, err)
	}
	if found, err := removal.Abandoned(t.Context(), virttest.Open(t), someMachine, Place{OverlayDir: t.TempDir(), JobDir: dir}, false); found || err != nil {
		t.Errorf("sweep: %v, %v", found, err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
	if err := first.Unlock(); err != nil {
		t.Fatal(err)
	}
	second, err := createJobDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Unlock()
	if _, err := os.Stat(left); err == nil {
		t.Error("the files of a dead process are still there")
	}
}
