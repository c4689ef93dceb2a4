package removal

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/place"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

const someMachine = "sardine-0123abcd-4711"

// A sweep neither removes nor reports a machine that its own cleanup is removing.
func TestSweepBesideCleanup(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
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
		go func() {
			cleaned <- Remove(t.Context(), h, someMachine, place.Place{OverlayDir: clones, JobDir: jobDir})
		}()
		for done := false; !done; {
			select {
			case err := <-cleaned:
				if err != nil {
					t.Fatal(err)
				}
				done = true // and once more, for a directory that was seen before
			case <-time.After(rand.N(time.Millisecond)): // a sweep looks once at each
			}
			if found, err := Abandoned(t.Context(), h, someMachine, place.Place{OverlayDir: clones, JobDir: jobDir}, false); found || err != nil {
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
	t.Parallel()
	h := virttest.OpenEmpty(t)
	root := t.TempDir()
	clones, jobDir := filepath.Join(root, "clones"), filepath.Join(root, "jobs", someMachine)
	if err := os.MkdirAll(jobDir, 0o700); err != nil {
		t.Fatal(err)
	}
	sweep := func(what string, rule Rule, want bool) {
		t.Helper()
		rule.Now = time.Unix(1700000000, 0)
		if removed, err := Expired(t.Context(), h, someMachine, place.Place{OverlayDir: clones, JobDir: jobDir}, rule); removed != want || err != nil {
			t.Errorf("%s: removed: %t, %v; want %t", what, removed, err, want)
		}
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: someMachine, Metadata: expired(t)})
	locked, err := dirlock.Acquire(t.Context(), jobDir, time.Second)
	if err != nil || locked == nil {
		t.Fatal(locked, err)
	}
	sweep("beside its cleanup, dry", Rule{DryRun: true}, false)
	sweep("beside its cleanup", Rule{}, false)
	if err := locked.Unlock(); err != nil {
		t.Fatal(err)
	}
	sweep("dry", Rule{DryRun: true}, true)
	sweep("expired", Rule{}, true)
	sweep("removed before", Rule{}, false)
	sweep("removed before, dry", Rule{DryRun: true}, false)
	if exists(jobDir) {
		t.Error("its directory is there")
	}
	metadata, err := record.Record{Job: "4711", Expires: time.Unix(1800000000, 0)}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: someMachine, Metadata: metadata})
	sweep("given more time", Rule{}, false)
	sweep("with all others, dry", Rule{DryRun: true, Force: true}, true)
	sweep("with all others", Rule{Force: true}, true)
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
