package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	oraslayout "oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transfer"
)

// TestOras lets oras copy what export wrote, from a layout to a registry and from
// there to another layout: both are the same image, byte for byte.
func TestOras(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "2M")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 1M", "base.qcow2")
	ocitest.Command(t, dir, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "top.qcow2")
	ocitest.Command(t, dir, "qemu-io", "-f", "qcow2", "-c", "write -P 0x22 512k 64k", "top.qcow2")
	content := diskOfChunks()
	if err := os.WriteFile(filepath.Join(dir, "data.raw"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	disks := []export.Disk{{Path: filepath.Join(dir, "top.qcow2")}, {Path: filepath.Join(dir, "data.raw"), Format: "raw"}}
	contents := map[string]digest.Digest{}
	for _, disk := range disks {
		contents[disk.Path] = ocitest.RawDigest(t, disk.Path, filepath.Ext(disk.Path)[1:])
	}
	guest := oci.GuestConfig{Users: []oci.User{{Username: "vagrant", Password: "secret"}}}
	host := ocitest.NewFaultyRegistry(t).Host

	for name, o := range map[string]export.Options{
		"sardinecake":          {},
		"sardinecake, chunked": {ChunkSize: 64 << 10},
		"chunked":              {Format: "chunked", ChunkSize: 256 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			o.Disks, o.Guest = disks, guest
			dir := t.TempDir()
			exported, fetched, ours := filepath.Join(dir, "exported"), filepath.Join(dir, "fetched"), filepath.Join(dir, "ours")
			want, err := export.Export(t.Context(), ocitest.MustParse(t, "oci:"+exported+":1"), o)
			if err != nil {
				t.Fatal(err)
			}
			open := func(path string) *oraslayout.Store {
				t.Helper()
				layout, err := oraslayout.NewWithContext(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				return layout
			}
			pushed := ocitest.MustParse(t, host+"/vms/oras-"+want.Encoded()[:12]+":1")
			repository, err := remote.NewRepository(pushed.Repository())
			if err != nil {
				t.Fatal(err)
			}
			repository.PlainHTTP = true
			if d, err := oras.Copy(t.Context(), open(exported), "1", repository, "1", oras.DefaultCopyOptions); err != nil || d.Digest != want {
				t.Fatalf("oras, to the registry: %s, %v; want %s", d.Digest, err, want)
			}
			if d, err := oras.Copy(t.Context(), repository, "1", open(fetched), "1", oras.DefaultCopyOptions); err != nil || d.Digest != want {
				t.Fatalf("oras, from the registry: %s, %v; want %s", d.Digest, err, want)
			}
			// What it made is good for us, too, and what we make of it for it.
			if d, err := transfer.Fetch(t.Context(), pushed, ocitest.MustParse(t, "oci:"+ours), transfer.Options{}); err != nil || d != want {
				t.Fatalf("fetch: %s, %v; want %s", d, err, want)
			}
			if d, err := open(ours).Resolve(t.Context(), "1"); err != nil || d.Digest != want {
				t.Errorf("oras finds %s in our layout, %v; want %s", d.Digest, err, want)
			}
			for _, layout := range []string{fetched, ours} {
				for _, blob := range ocitest.BlobNames(t, exported) {
					path := filepath.Join("blobs", "sha256", blob)
					if diff := cmp.Diff(ocitest.FileDigest(t, filepath.Join(exported, path)), ocitest.FileDigest(t, filepath.Join(layout, path))); diff != "" {
						t.Errorf("%s: %s", layout, diff)
					}
				}
				if diff := cmp.Diff(ocitest.BlobNames(t, exported), ocitest.BlobNames(t, layout)); diff != "" {
					t.Errorf("%s: %s", layout, diff)
				}
			}
			for _, ref := range []oci.Reference{pushed, ocitest.MustParse(t, "oci:"+fetched+":1")} {
				image, err := newStore(t).Pull(t.Context(), ref, PullOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if image.Digest != want || len(image.Disks) != 3 || len(image.Guest.Users) != 1 {
					t.Errorf("%s: %+v", ref, image)
				}
				for _, disk := range disks {
					name := filepath.Base(disk.Path)
					if ocitest.RawDigest(t, filepath.Join(image.Dir, name), filepath.Ext(name)[1:]) != contents[disk.Path] {
						t.Errorf("%s: %s has other content", ref, name)
					}
				}
			}
		})
	}
}
