package store

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

func TestPullHostile(t *testing.T) {
	t.Parallel()
	plain := ocitest.Qcow2File(t)
	onShadow := ocitest.Qcow2File(t, "-F", "raw", "-b", "/etc/shadow")
	onBase := ocitest.Qcow2File(t, "-F", "qcow2", "-b", "base.qcow2")
	other := append(bytes.Clone(plain), 1)
	external := bytes.Clone(plain)
	external[79] |= 4 // the feature bit of external data
	half := len(ocitest.Zipped(t, "disk.raw", plain)) / 2

	tests := map[string]struct {
		image func(l ocitest.TestLayout) oci.Reference
		want  error
		text  string
	}{
		"host file as backing file": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", onShadow)))
		}, oci.ErrInvalid, "/etc/shadow"},
		"backing file comes later": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "top.qcow2", onBase)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", plain)))
		}, oci.ErrInvalid, "base.qcow2"},
		"ambiguous backing file": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base.qcow2", plain)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "base-1.qcow2", other)), l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "top.qcow2", onBase)))
		}, oci.ErrFormat, "base.qcow2, base-1.qcow2"},
		"external data file": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", external)))
		}, oci.ErrInvalid, "another file"},
		"not qcow2": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.Qcow2Layer, ocitest.Zipped(t, "disk.qcow2", []byte("hello"))))
		}, oci.ErrFormat, "qcow2"},
		"two disks of one name": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a"))), l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("b"))))
		}, oci.ErrFormat, "disk.raw"},
		"name ..": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "a/..", []byte("a"))))
		}, oci.ErrInvalid, `"a/.."`},
		"name of the store": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "image.json", []byte("a"))))
		}, oci.ErrFormat, "image.json"},
		"chunk missing": {func(l ocitest.TestLayout) oci.Reference {
			z := ocitest.Zipped(t, "disk.raw", plain)
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, z[:half]), l.Blob(ocitest.RawLayer+";chunk=2", z[half:]))
		}, oci.ErrFormat, "chunk 2"},
		"chunk repeated": {func(l ocitest.TestLayout) oci.Reference {
			z := ocitest.Zipped(t, "disk.raw", plain)
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, z[:half]), l.Blob(ocitest.RawLayer+";chunk=1", z[half:]), l.Blob(ocitest.RawLayer+";chunk=1", z[half:]))
		}, oci.ErrFormat, "chunk 1"},
		"chunk of no disk": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer+";chunk=1", ocitest.Zipped(t, "disk.raw", plain)))
		}, oci.ErrFormat, "chunk 1"},
		"truncated gzip": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", plain)[:half]))
		}, oci.ErrFormat, "damaged layer"},
		"not gzip": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, plain))
		}, oci.ErrFormat, "damaged layer"},
		"decompression bomb": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, packedWith(t, "gzip", []byte{0}, make([]byte, 1<<20), 84<<20)))
		}, oci.ErrInvalid, "unpacks to more"},
		"disk too large": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", make([]byte, 17<<20))))
		}, oci.ErrInvalid, "max_disk"},
		"wrong diff id": {func(l ocitest.TestLayout) oci.Reference {
			config := `{"rootfs":{"diff_ids":["` + digest.FromString("").String() + `","` + digest.FromString("x").String() + `"]}}`
			return l.Write(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte(config)), Layers: []v1.Descriptor{
				l.Blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>")), l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("\x00"))),
			}})
		}, oci.ErrInvalid, "its image says"},
		"size too large": {func(l ocitest.TestLayout) oci.Reference {
			layer := l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a")))
			layer.Size++
			return l.SardinecakeOf(layer)
		}, oci.ErrInvalid, "ends after"},
		"size too small": {func(l ocitest.TestLayout) oci.Reference {
			layer := l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a")))
			layer.Size--
			return l.SardinecakeOf(layer)
		}, oci.ErrInvalid, "longer than"},
		"bad VM config": {func(l ocitest.TestLayout) oci.Reference {
			return l.SardinecakeOf(l.Blob("application/vnd.sardinecake.vm.config.v1+json", []byte(`{"users":[{}]}`)), l.Blob(ocitest.RawLayer, ocitest.Zipped(t, "disk.raw", []byte("a"))))
		}, oci.ErrFormat, "username"},
		"container image": {func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{Config: l.Blob(v1.MediaTypeImageConfig, []byte(`{}`)), Layers: []v1.Descriptor{l.Blob(v1.MediaTypeImageLayerGzip, ocitest.Zipped(t, "", nil))}})
		}, oci.ErrFormat, "container image"},
		"artifact without a disk": {func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{ArtifactType: "text/plain", Layers: []v1.Descriptor{l.Blob("text/plain", []byte("hello"))}})
		}, oci.ErrFormat, "text/plain"},
		"artifact with two disks": {func(l ocitest.TestLayout) oci.Reference {
			return l.Write(v1.Manifest{Layers: []v1.Descriptor{l.Blob("application/vnd.qemu.qcow2", plain), l.Blob("application/vnd.qemu.qcow2", onBase)}})
		}, oci.ErrFormat, "several"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			store := newStore(t)
			image, err := store.Pull(t.Context(), test.image(ocitest.NewLayout(t)), PullOptions{MaxDisk: 16 << 20})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %+v, %v; want %v with %q", image, err, test.want, test.text)
			}
			ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}

func TestPullArtifact(t *testing.T) {
	t.Parallel()
	plain := ocitest.Qcow2File(t)
	titled := func(d v1.Descriptor, title string) v1.Descriptor {
		d.Annotations = map[string]string{v1.AnnotationTitle: title}
		return d
	}
	tests := map[string]struct {
		layer  func(l ocitest.TestLayout) v1.Descriptor
		name   string
		format string
	}{
		"by type": {func(l ocitest.TestLayout) v1.Descriptor { return l.Blob("application/vnd.qemu.qcow2", plain) }, "disk.qcow2", "qcow2"},
		"by title": {func(l ocitest.TestLayout) v1.Descriptor {
			return titled(l.Blob(v1.MediaTypeImageLayer, plain), "a/b.qcow2")
		}, "b.qcow2", "qcow2"},
		"img that is qcow2": {func(l ocitest.TestLayout) v1.Descriptor { return titled(l.Blob("x/y", plain), "b.img") }, "b.img", "qcow2"},
		"img":               {func(l ocitest.TestLayout) v1.Descriptor { return titled(l.Blob("x/y", []byte("\x00boot")), "b.img") }, "b.img", "raw"},
		"gz": {func(l ocitest.TestLayout) v1.Descriptor {
			return titled(l.Blob("x/y", ocitest.Zipped(t, "z", plain)), "b.qcow2.gz")
		}, "b.qcow2", "qcow2"},
		"gz by name only": {func(l ocitest.TestLayout) v1.Descriptor { return titled(l.Blob("x/y", plain), "b.qcow2.gz") }, "b.qcow2", "qcow2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := ocitest.NewLayout(t)
			image, err := newStore(t).Pull(t.Context(), l.Write(v1.Manifest{Layers: []v1.Descriptor{test.layer(l)}}), PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if disk := image.Disks[0]; disk.Name != test.name || disk.Format != test.format {
				t.Errorf("disk %+v, want %s %s", disk, test.name, test.format)
			}
			checkDigest(t, image)
		})
	}
}

// TestPullArtifactNamedRaw: a disk named raw is not read as qcow2, nor is qcow2 as raw.
func TestPullArtifactNamedRaw(t *testing.T) {
	t.Parallel()
	l := ocitest.NewLayout(t)
	disk := l.Blob("x/y", ocitest.Qcow2File(t))
	disk.Annotations = map[string]string{v1.AnnotationTitle: "b.raw"}
	_, err := newStore(t).Pull(t.Context(), l.Write(v1.Manifest{Layers: []v1.Descriptor{disk}}), PullOptions{})
	if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), "name it *.qcow2") {
		t.Errorf("got %v", err)
	}
}

func checkDigest(t *testing.T, image *oci.Image) {
	t.Helper()
	for _, disk := range image.Disks {
		if got := ocitest.FileDigest(t, filepath.Join(image.Dir, disk.Name)); got != disk.Digest {
			t.Errorf("%s: digest %s, noted %s", disk.Name, got, disk.Digest)
		}
	}
}
