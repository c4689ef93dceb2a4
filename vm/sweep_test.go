package vm

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

const someMachine = "sardine-0123abcd-4711"

// Concurrent sweeps do not remove a machine that is being started, and no prepare fails.
func TestSweepBesidePrepare(t *testing.T) {
	h := virttest.Open(t)
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
			found, err := RemoveAbandoned(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}, false)
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
		if err := Remove(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}); err != nil {
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
	if found, err := RemoveAbandoned(t.Context(), virttest.Open(t), someMachine, Place{OverlayDir: t.TempDir(), JobDir: dir}, false); found || err != nil {
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

// A sweep neither removes nor reports a machine that its own cleanup is removing.
func TestSweepBesideCleanup(t *testing.T) {
	h := virttest.Open(t)
	root := t.TempDir()
	clones, jobDir := filepath.Join(root, "clones"), filepath.Join(root, "jobs", someMachine)
	files := []string{jobDir, filepath.Join(clones, someMachine)}
	for n := range 200 {
		for _, dir := range files {
			if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		virttest.Start(t, h, &libvirtxml.Domain{Name: someMachine, Metadata: expired(t)})
		cleaned := make(chan error, 1)
		go func() { cleaned <- Remove(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}) }()
		for done := false; !done; {
			select {
			case err := <-cleaned:
				if err != nil {
					t.Fatal(err)
				}
				done = true // and once more, for a directory that was seen before
			case <-time.After(rand.N(time.Millisecond)): // a sweep looks once at each
			}
			if found, err := RemoveAbandoned(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}, false); found || err != nil {
				t.Fatalf("round %d: the files were swept (%t): %v", n, found, err)
			}
		}
		for _, dir := range files {
			if exists(dir) {
				t.Fatalf("round %d: %s is still there", n, dir)
			}
		}
	}
}

// A sweep does not remove an expired machine that its job is removing or has removed.
func TestRemoveExpired(t *testing.T) {
	h := virttest.Open(t)
	root := t.TempDir()
	clones, jobDir := filepath.Join(root, "clones"), filepath.Join(root, "jobs", someMachine)
	if err := os.MkdirAll(jobDir, 0o700); err != nil {
		t.Fatal(err)
	}
	sweep := func(what string, rule RemoveRule, want bool) {
		t.Helper()
		rule.Now = time.Unix(1700000000, 0)
		if removed, err := RemoveExpired(t.Context(), h, someMachine, Place{OverlayDir: clones, JobDir: jobDir}, rule); removed != want || err != nil {
			t.Errorf("%s: removed: %t, %v; want %t", what, removed, err, want)
		}
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: someMachine, Metadata: expired(t)})
	locked, err := lockToRemove(someMachine, Place{OverlayDir: clones, JobDir: jobDir})
	if err != nil || locked == nil {
		t.Fatal(locked, err)
	}
	sweep("beside its cleanup, dry", RemoveRule{DryRun: true}, false)
	sweep("beside its cleanup", RemoveRule{}, false)
	if err := locked.Unlock(); err != nil {
		t.Fatal(err)
	}
	sweep("dry", RemoveRule{DryRun: true}, true)
	sweep("expired", RemoveRule{}, true)
	sweep("removed before", RemoveRule{}, false)
	sweep("removed before, dry", RemoveRule{DryRun: true}, false)
	if exists(jobDir) {
		t.Error("its directory is there")
	}
	metadata, err := record.Record{Job: "4711", Expires: time.Unix(1800000000, 0)}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: someMachine, Metadata: metadata})
	sweep("given more time", RemoveRule{}, false)
	sweep("with all others, dry", RemoveRule{DryRun: true, Force: true}, true)
	sweep("with all others", RemoveRule{Force: true}, true)
}

// expired returns the metadata of an expired machine.
func expired(t *testing.T) *libvirtxml.DomainMetadata {
	t.Helper()
	metadata, err := record.Record{Job: "4711", Expires: time.Unix(1600000000, 0)}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return metadata
}
