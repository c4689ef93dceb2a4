package vm

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const someMachine = "sardine-0123abcd-4711"

// A sweep that comes upon a machine which is being made, again and again, removes
// nothing of it, and no prepare is refused.
func TestSweepBesidePrepare(t *testing.T) {
	h := testHost(t)
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
			found, err := RemoveAbandoned(t.Context(), h, someMachine, clones, jobDir, false)
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
		if err := Remove(t.Context(), h, someMachine, clones, jobDir); err != nil {
			t.Fatal(err)
		}
		job, err := makeJobDir(t.Context(), jobDir)
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
		if err := job.unlock(); err != nil { // and then it dies
			t.Fatal(err)
		}
	}
	close(stop)
	t.Logf("%d machines were made, %d sweeps removed something", made, <-swept)
}

// The directory of a machine that another process makes is not taken away from it, and
// what a dead one left there goes.
func TestJobDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs", someMachine)
	first, err := makeJobDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "left")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if second, err := holdJobDir(t.Context(), dir, 50*time.Millisecond); second != nil || err != nil {
		t.Errorf("two have the directory at once: %v, %v", second, err)
	}
	if found, err := RemoveAbandoned(t.Context(), testHost(t), someMachine, t.TempDir(), dir, false); found || err != nil {
		t.Errorf("sweep: %v, %v", found, err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
	if err := first.unlock(); err != nil {
		t.Fatal(err)
	}
	second, err := makeJobDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.unlock()
	if _, err := os.Stat(left); err == nil {
		t.Error("the files of a dead process are still there")
	}
}
