package disk

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/qcow2/qcow2test"
)

func TestCloneQCOW2(t *testing.T) {
	const size = 3 << 30
	dir := t.TempDir()
	base := filepath.Join(dir, "a:b", "base.qcow2") // the colon is no protocol
	if err := os.Mkdir(filepath.Dir(base), 0o755); err != nil {
		t.Fatal(err)
	}
	qcow2test.Create(t, base, size)
	into := filepath.Join(dir, "clones")
	if err := os.Mkdir(into, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, test := range []struct {
		name, target string
		grow         int64
		want         string
		size         int64
	}{
		{"directory", into, 0, filepath.Join(into, "base.qcow2"), size},
		{"directory again", into, 0, filepath.Join(into, "base-1.qcow2"), size},
		{"directory a third time", into, 0, filepath.Join(into, "base-2.qcow2"), size},
		{"file", filepath.Join(into, "mine.img"), 0, filepath.Join(into, "mine.img"), size},
		{"file again", filepath.Join(into, "mine.img"), 0, filepath.Join(into, "mine-1.img"), size},
		{"empty", "", 0, filepath.Join(dir, "base.qcow2"), size},
		{"grown", filepath.Join(into, "grown.qcow2"), 2 * size, filepath.Join(into, "grown.qcow2"), 2 * size},
		{"never shrunk", filepath.Join(into, "small.qcow2"), size / 2, filepath.Join(into, "small.qcow2"), size},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := BackingFile{Path: base, Format: "qcow2", VirtualSize: size}
			got, err := CloneQCOW2(t.Context(), b, test.target, test.grow)
			if err != nil || got != test.want {
				t.Fatalf("got %q, %v; want %q", got, err, test.want)
			}
			h := qcow2test.Header(t, got)
			if h.BackingFile != base || h.BackingFormat != "qcow2" || h.VirtualSize != test.size {
				t.Errorf("backing file %q (%s), size %d; want %q (qcow2), %d", h.BackingFile, h.BackingFormat, h.VirtualSize, base, test.size)
			}
		})
	}
}

// The base may be untrusted: if its size is known, nothing opens it.
func TestCloneQCOW2DoesNotOpenTheBase(t *testing.T) {
	dir := t.TempDir()
	base := BackingFile{Path: filepath.Join(dir, "missing.qcow2"), Format: "qcow2", VirtualSize: 1 << 20}
	if _, err := CloneQCOW2(t.Context(), base, filepath.Join(dir, "clone.qcow2"), 0); err != nil {
		t.Errorf("the base was opened: %v", err)
	}
}

func TestCloneQCOW2LeavesNothingOnFailure(t *testing.T) {
	dir := t.TempDir()
	for _, base := range []BackingFile{
		{Path: filepath.Join(dir, "missing.qcow2"), Format: "qcow2"},
		{Path: filepath.Join(dir, "missing.qcow2"), Format: "vmdk", VirtualSize: 1 << 20},
	} {
		if _, err := CloneQCOW2(t.Context(), base, dir, 0); err == nil {
			t.Errorf("%+v was cloned", base)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCloneQCOW2AtOnce(t *testing.T) {
	dir := t.TempDir()
	base := BackingFile{Path: filepath.Join(dir, "base.raw"), Format: "raw", VirtualSize: 1 << 20}
	const clones = 8
	got := make([]string, clones)
	var all sync.WaitGroup
	for i := range clones {
		all.Go(func() {
			var err error
			if got[i], err = CloneQCOW2(t.Context(), base, dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	for _, path := range got {
		if seen[path] {
			t.Errorf("two clones are called %s", path)
		}
		seen[path] = true
	}
}

func TestCloneDisks(t *testing.T) {
	dir := t.TempDir()
	disks := []Disk{
		{Name: "base.qcow2", Path: "/images/base.qcow2", Format: "qcow2", VirtualSize: 1 << 20},
		{Name: "system.qcow2", Path: "/images/system.qcow2", Format: "qcow2", Backing: "base.qcow2", VirtualSize: 1 << 20},
		{Name: "data.raw", Path: "/images/data.raw", Format: "raw", VirtualSize: 1 << 21},
		{Name: "seed.iso", Path: "/images/seed.iso", Format: "raw", CDROM: true, VirtualSize: 1 << 15},
	}
	overlays, err := CloneDisks(t.Context(), disks, dir, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if len(overlays) != 2 || qcow2test.Header(t, overlays["system.qcow2"]).VirtualSize != 1<<30 || qcow2test.Header(t, overlays["data.raw"]).VirtualSize != 1<<21 {
		t.Errorf("got %v", overlays)
	}

	// A failure in the middle leaves nothing.
	empty := t.TempDir()
	disks[2].Format = "vmdk"
	if _, err := CloneDisks(t.Context(), disks, empty, 0); err == nil {
		t.Error("a vmdk was cloned")
	}
	if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := CloneDisks(t.Context(), disks[:1], filepath.Join(dir, "none"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a directory that is not there: %v", err)
	}
}
