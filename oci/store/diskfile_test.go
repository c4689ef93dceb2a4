package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// diskFile writes a disk file of the host, and returns its reference.
func diskFile(t *testing.T, content []byte) oci.Reference {
	t.Helper()
	path := filepath.Join(t.TempDir(), "my disk.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return ocitest.MustParse(t, "file:"+path)
}

// TestDiskFile: a disk file of the host is imported once, until it changes.
func TestDiskFile(t *testing.T) {
	t.Parallel()
	store, qcow2 := newStore(t), ocitest.Qcow2File(t)
	raw := append(ocitest.Noise(510), 0x55, 0xaa)
	ref := diskFile(t, qcow2)
	first, err := store.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ocitest.CheckContent(t, first, qcow2)
	if d := first.Disks[0]; d.Name != "disk.qcow2" || d.Format != "qcow2" || first.Reference != ref.String() {
		t.Errorf("%+v", first)
	}
	// The second job does not read the file.
	again, _, err := store.lookupFile(t.Context(), ref, PullOptions{})
	if err != nil || again == nil || again.Key() != first.Key() {
		t.Fatalf("got %+v, %v; want the image that is there", again, err)
	}
	again.Close()
	equal, err := store.Pull(t.Context(), diskFile(t, qcow2), PullOptions{})
	if err != nil || equal.Key() != first.Key() {
		t.Errorf("an equal file: %+v, %v", equal, err)
	}
	if err := os.WriteFile(ref.File(), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if stale, _, err := store.lookupFile(t.Context(), ref, PullOptions{}); stale != nil || err != nil {
		t.Errorf("a changed file: %+v, %v", stale, err)
	}
	changed, err := store.Pull(t.Context(), ref, PullOptions{})
	if err != nil || changed.Key() == first.Key() || changed.Disks[0].Format != "raw" {
		t.Fatalf("a changed file: %+v, %v", changed, err)
	}
	ocitest.CheckContent(t, changed, raw)
	if err := os.RemoveAll(changed.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Errorf("after the image was removed: %v", err)
	}
	if err := os.Remove(ref.File()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a file that is gone: %v", err)
	}
}

// TestMachine: a virtual machine of the host is imported once, until it changes, with all its
// disks.
func TestMachine(t *testing.T) {
	t.Parallel()
	store, dir := newStore(t), t.TempDir()
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
	asked := 0
	o := PullOptions{Machines: func(_ context.Context, name string) (*oci.Machine, error) {
		if asked++; name != "my vm" {
			return nil, oci.ErrNotFound
		}
		return &oci.Machine{
			DomainXML: []byte("<domain/>"), Architecture: "amd64",
			Disks: []oci.MachineDisk{{Path: filepath.Join(dir, "top.qcow2"), Name: "top.qcow2", Format: "qcow2"}},
		}, nil
	}}
	ref := ocitest.MustParse(t, "libvirt:my vm")
	first, err := store.Pull(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if len(first.Disks) != 2 || first.Disks[1].Name != "top.qcow2" || first.Disks[1].Backing != "base.qcow2" || string(first.DomainXML) != "<domain/>" {
		t.Errorf("%+v", first)
	}
	// The second job asks libvirt once, and does not read the files.
	asked = 0
	again, err := store.Pull(t.Context(), ref, o)
	if err != nil || again.Key() != first.Key() || asked != 1 {
		t.Fatalf("got %+v, %v after %d questions", again, err, asked)
	}
	again.Close()
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "base.qcow2")
	changed, err := store.Pull(t.Context(), ref, o)
	if err != nil || changed.Key() == first.Key() {
		t.Fatalf("a changed machine: %+v, %v", changed, err)
	}
	changed.Close()
	for _, policy := range []oci.PullPolicy{oci.PullNever, oci.PullIfNotPresent} {
		asked = 0
		copied, err := store.Pull(t.Context(), ref, PullOptions{Policies: []oci.PullPolicy{policy}, Machines: o.Machines})
		if err != nil || copied.Key() != changed.Key() || asked != 0 {
			t.Errorf("%s: %+v, %v after %d questions", policy, copied, err, asked)
			continue
		}
		copied.Close()
	}
	if _, err := store.Pull(t.Context(), ocitest.MustParse(t, "libvirt:none"), o); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a machine that is not there: %v", err)
	}
	if _, err := store.Pull(t.Context(), ref, PullOptions{}); !oci.IsPermanent(err) {
		t.Errorf("where there is no libvirt: %v", err)
	}
}

// TestDiskFileRefused: the content is not trusted more than that of other images.
func TestDiskFileRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		content []byte
		text    string
	}{
		"backing file": {ocitest.Qcow2File(t, "-F", "raw", "-b", "/etc/shadow"), "shadow"},
		// qemu-img writes to the data file, so it is one of the test.
		"data file": {ocitest.Qcow2File(t, "-o", "data_file="+filepath.Join(t.TempDir(), "data.raw")), "keeps its content in another file"},
		"text":      {[]byte("root:x:0:0:root:/root:/bin/sh\n"), "not a disk but text"},
		"empty":     {nil, "empty"},
		"too large": {bytes.Repeat([]byte{0}, 2<<20), "max_disk"},
	} {
		t.Run(name, func(t *testing.T) {
			store := newStore(t)
			image, err := store.Pull(t.Context(), diskFile(t, test.content), PullOptions{MaxDisk: 1 << 20})
			if !oci.IsPermanent(err) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %+v, %v; want an error with %q", image, err, test.text)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := newStore(t).Pull(ctx, diskFile(t, ocitest.Qcow2File(t)), PullOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}
