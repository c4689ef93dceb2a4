package vm

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

func TestRemoveLeavesOtherDomainsAlone(t *testing.T) {
	h := virttest.OpenEmpty(t)
	virttest.Start(t, h, &libvirtxml.Domain{Name: "sardine-00000000-1"})
	clones, job := t.TempDir(), t.TempDir()
	if err := removal.Remove(t.Context(), h, "sardine-00000000-1", Place{OverlayDir: clones, JobDir: job}); !errors.Is(err, errdefs.ErrNotOurs) {
		t.Errorf("got %v, want %v", err, errdefs.ErrNotOurs)
	}
	if _, err := h.Domain(t.Context(), "sardine-00000000-1"); err != nil {
		t.Errorf("a foreign domain is gone: %v", err)
	}
	if _, err := os.Stat(job); err != nil {
		t.Errorf("its files were touched: %v", err)
	}
}

func TestRemoveIsIdempotent(t *testing.T) {
	h := virttest.OpenEmpty(t)
	metadata, err := record.Record{Job: "7"}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: "ours", Metadata: metadata})
	clones, job := t.TempDir(), t.TempDir()
	for range 3 {
		if err := removal.Remove(t.Context(), h, "ours", Place{OverlayDir: clones, JobDir: job}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Domain(t.Context(), "ours"); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("the domain is still there: %v", err)
	}
	if _, err := os.Stat(job); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is still there: %v", err)
	}
}

// While another process starts or removes a machine, no other of that name is started: it would
// lose its files to that process. A removal that nothing follows does not wait for long.
func TestRemoveOfALockedMachine(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
	metadata, err := record.Record{Job: "7"}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: "ours", Metadata: metadata})
	at := Place{OverlayDir: t.TempDir(), JobDir: t.TempDir()}
	locked, err := dirlock.Try(at.JobDir)
	if err != nil || locked == nil {
		t.Fatal(locked, err)
	}
	defer locked.Unlock() // without, the garbage collector could close it
	canceled := errors.New("canceled")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 700*time.Millisecond, canceled) // longer than Remove waits
	defer cancel()
	if err := removal.Stale(ctx, h, "ours", at); !errors.Is(err, canceled) {
		t.Errorf("got %v, want %v", err, canceled)
	}
	if _, err := h.Domain(t.Context(), "ours"); err != nil {
		t.Errorf("the machine of another process is gone: %v", err)
	}
	if err := removal.Remove(t.Context(), h, "ours", at); err != nil {
		t.Error(err)
	}
	if _, err := h.Domain(t.Context(), "ours"); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("the domain is still there: %v", err)
	}
}

func TestFindKnowsWhatIsNotOurs(t *testing.T) {
	h := virttest.OpenEmpty(t)
	virttest.Start(t, h, &libvirtxml.Domain{Name: "foreign"})
	for name, want := range map[string]error{"foreign": errdefs.ErrNotOurs, "none": errdefs.ErrNoDomain} {
		if _, err := Find(t.Context(), h, name, t.TempDir()); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	_, err := virt.Open(t.Context(), "qemu+unix:///session?socket=/nonexistent/socket")
	if err == nil {
		t.Fatal("connected to nothing")
	}
	t.Log(err)
}
