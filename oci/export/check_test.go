package export

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/oci/transport"
)

func layoutRef(t *testing.T, dir, tag string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference("oci:" + dir + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// The image can be pulled while it is checked, and has no tag then. What is refused leaves
// nothing.
func TestExportCheck(t *testing.T) {
	t.Parallel()
	disks := rawDisk(t, 200_000)
	errRefused := errors.New("refused")
	for _, there := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "layout")
		if there {
			if _, err := Export(t.Context(), layoutRef(t, dir, "0"), Options{Disks: rawDisk(t, 100_000)}); err != nil {
				t.Fatal(err)
			}
		}
		before, _ := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
		images, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		var judged error
		check := func(ctx context.Context, ref oci.Reference) error {
			image, err := images.Pull(ctx, ref, store.PullOptions{Policies: []oci.PullPolicy{oci.PullAlways}})
			if err != nil {
				t.Errorf("%s cannot be pulled: %v", ref, err)
				return err
			}
			defer image.Close()
			if _, err := layout.Open(layoutRef(t, dir, "1")); !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("it has its tag: %v", err)
			}
			return judged
		}
		judged = errRefused
		if _, err := Export(t.Context(), layoutRef(t, dir, "1"), Options{Disks: disks, Format: format.Chunked, Check: check}); !errors.Is(err, errRefused) {
			t.Errorf("refused: %v", err)
		}
		after, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
		if !bytes.Equal(before, after) || there == errors.Is(err, os.ErrNotExist) {
			t.Errorf("there %v: the index is %q, was %q (%v)", there, after, before, err)
		}
		if _, err := os.Lstat(dir); !there && err == nil {
			t.Error("the layout was left")
		}
		judged = nil
		d, err := Export(t.Context(), layoutRef(t, dir, "1"), Options{Disks: disks, Labels: map[string]string{"a": "b"}, Check: check})
		if err != nil {
			t.Fatal(err)
		}
		if image, err := images.Pull(t.Context(), layoutRef(t, dir, "1"), store.PullOptions{Policies: []oci.PullPolicy{oci.PullNever, oci.PullAlways}}); err != nil || image.Digest != d {
			t.Errorf("%v, %v, want %s", image, err, d)
		}
	}
}

// chunksOf are the chunk layers of an image in the layout.
func chunksOf(t *testing.T, ref oci.Reference) []v1.Descriptor {
	t.Helper()
	src, err := layout.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	raw, _, err := src.Manifest(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(m.Layers, func(l v1.Descriptor) bool { return l.MediaType != format.TypeChunk })
}

// Chunks that an image of the layout has are not compressed again; what it only claims to have,
// or has damaged, is.
func TestExportReusesChunks(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for n := range 60_000 {
		fmt.Fprintf(&text, "line %d of a disk\n", n*7919%60_000)
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	disk := []byte(text.String())
	disk[510], disk[511] = 0x55, 0xaa // a boot sector
	if err := os.WriteFile(path, disk, 0o644); err != nil {
		t.Fatal(err)
	}
	o := Options{Disks: []Disk{{Path: path, Format: "raw"}}, Format: format.Chunked, ChunkSize: 1 << 17}
	dir := t.TempDir()
	export := func(tag string, level int) []v1.Descriptor {
		t.Helper()
		o.Level = level
		if _, err := Export(t.Context(), layoutRef(t, dir, tag), o); err != nil {
			t.Fatal(err)
		}
		return chunksOf(t, layoutRef(t, dir, tag))
	}
	best := export("best", 7)
	again := export("again", 1)
	if len(best) < 4 {
		t.Fatalf("%d chunks", len(best))
	}
	for i := range best {
		if best[i].Digest != again[i].Digest || best[i].Annotations[format.ChunkOffset] != again[i].Annotations[format.ChunkOffset] {
			t.Errorf("chunk %d was compressed again", i)
		}
	}

	// One blob is damaged, another one belongs to other content.
	victim := filepath.Join(dir, "blobs", "sha256", best[0].Digest.Encoded())
	packed, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	packed[len(packed)/2] ^= 1
	if err := errors.Join(os.Chmod(victim, 0o644), os.WriteFile(victim, packed, 0o644)); err != nil {
		t.Fatal(err)
	}
	lie := slices.Clone(best)
	lie[1].Digest, lie[1].Size = best[2].Digest, best[2].Size
	for _, tag := range []string{"best", "again"} {
		relabel(t, dir, tag, lie)
	}
	fresh := export("fresh", 1)
	if fresh[0].Digest == best[0].Digest || fresh[1].Digest == best[2].Digest || fresh[2].Digest != best[2].Digest {
		t.Errorf("got %v, the layout had %v", fresh[:3], lie[:3])
	}
	images, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, err := images.Pull(t.Context(), layoutRef(t, dir, "fresh"), store.PullOptions{Policies: []oci.PullPolicy{oci.PullAlways}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(image.Dir, "disk.raw")); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("another disk came out: %d bytes, %v", len(got), err)
	}
}

// relabel gives the tag to an image with those layers.
func relabel(t *testing.T, dir, tag string, layers []v1.Descriptor) {
	t.Helper()
	w, err := layout.OpenWriter(t.Context(), dir, tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	raw, err := json.Marshal(v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.DescriptorEmptyJSON, Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), transport.RawManifest{Raw: raw, MediaType: v1.MediaTypeImageManifest, Digest: v1.DescriptorEmptyJSON.Digest.Algorithm().FromBytes(raw)}); err != nil {
		t.Fatal(err)
	}
}
