package oci

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPullHostile(t *testing.T) {
	plain := qcow2File(t)
	onShadow := qcow2File(t, "-F", "raw", "-b", "/etc/shadow")
	onBase := qcow2File(t, "-F", "qcow2", "-b", "base.qcow2")
	other := append(bytes.Clone(plain), 1)
	external := bytes.Clone(plain)
	external[79] |= 4 // the feature bit of external data
	half := len(zipped(t, "disk.raw", plain)) / 2

	tests := map[string]struct {
		image func(l testLayout) Reference
		want  error
		text  string
	}{
		"host file as backing file": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "disk.qcow2", onShadow)))
		}, ErrHostile, "/etc/shadow"},
		"backing file comes later": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "top.qcow2", onBase)), l.blob(qcow2Layer, zipped(t, "base.qcow2", plain)))
		}, ErrHostile, "base.qcow2"},
		"ambiguous backing file": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "base.qcow2", plain)), l.blob(qcow2Layer, zipped(t, "base-1.qcow2", other)), l.blob(qcow2Layer, zipped(t, "top.qcow2", onBase)))
		}, ErrFormat, "base.qcow2, base-1.qcow2"},
		"external data file": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "disk.qcow2", external)))
		}, ErrHostile, "another file"},
		"not qcow2": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(qcow2Layer, zipped(t, "disk.qcow2", []byte("hello"))))
		}, ErrFormat, "qcow2"},
		"two disks of one name": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "disk.raw", []byte("a"))), l.blob(rawLayer, zipped(t, "disk.raw", []byte("b"))))
		}, ErrFormat, "disk.raw"},
		"name ..": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "a/..", []byte("a"))))
		}, ErrHostile, `"a/.."`},
		"name of the store": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "image.json", []byte("a"))))
		}, ErrFormat, "image.json"},
		"chunk missing": {func(l testLayout) Reference {
			z := zipped(t, "disk.raw", plain)
			return l.sardinecakeOf(l.blob(rawLayer, z[:half]), l.blob(rawLayer+";chunk=2", z[half:]))
		}, ErrFormat, "chunk 2"},
		"chunk repeated": {func(l testLayout) Reference {
			z := zipped(t, "disk.raw", plain)
			return l.sardinecakeOf(l.blob(rawLayer, z[:half]), l.blob(rawLayer+";chunk=1", z[half:]), l.blob(rawLayer+";chunk=1", z[half:]))
		}, ErrFormat, "chunk 1"},
		"chunk of no disk": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer+";chunk=1", zipped(t, "disk.raw", plain)))
		}, ErrFormat, "chunk 1"},
		"truncated gzip": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "disk.raw", plain)[:half]))
		}, ErrFormat, "damaged layer"},
		"not gzip": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, plain))
		}, ErrFormat, "damaged layer"},
		"decompression bomb": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "disk.raw", make([]byte, 128<<20))))
		}, ErrHostile, "unpacks to more"},
		"disk too large": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob(rawLayer, zipped(t, "disk.raw", make([]byte, 17<<20))))
		}, ErrHostile, "max_disk"},
		"wrong diff id": {func(l testLayout) Reference {
			config := `{"rootfs":{"diff_ids":["` + digest.FromString("").String() + `","` + digest.FromString("x").String() + `"]}}`
			return l.write(v1.Manifest{Config: l.blob(v1.MediaTypeImageConfig, []byte(config)), Layers: []v1.Descriptor{
				l.blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>")), l.blob(rawLayer, zipped(t, "disk.raw", []byte("\x00"))),
			}})
		}, ErrHostile, "its image says"},
		"size too large": {func(l testLayout) Reference {
			layer := l.blob(rawLayer, zipped(t, "disk.raw", []byte("a")))
			layer.Size++
			return l.sardinecakeOf(layer)
		}, ErrHostile, "ends after"},
		"size too small": {func(l testLayout) Reference {
			layer := l.blob(rawLayer, zipped(t, "disk.raw", []byte("a")))
			layer.Size--
			return l.sardinecakeOf(layer)
		}, ErrHostile, "longer than"},
		"bad VM config": {func(l testLayout) Reference {
			return l.sardinecakeOf(l.blob("application/vnd.sardinecake.vm.config.v1+json", []byte(`{"users":[{}]}`)), l.blob(rawLayer, zipped(t, "disk.raw", []byte("a"))))
		}, ErrFormat, "username"},
		"container image": {func(l testLayout) Reference {
			return l.write(v1.Manifest{Config: l.blob(v1.MediaTypeImageConfig, []byte(`{}`)), Layers: []v1.Descriptor{l.blob(v1.MediaTypeImageLayerGzip, zipped(t, "", nil))}})
		}, ErrFormat, "container image"},
		"artifact without a disk": {func(l testLayout) Reference {
			return l.write(v1.Manifest{ArtifactType: "text/plain", Layers: []v1.Descriptor{l.blob("text/plain", []byte("hello"))}})
		}, ErrFormat, "text/plain"},
		"artifact with two disks": {func(l testLayout) Reference {
			return l.write(v1.Manifest{Layers: []v1.Descriptor{l.blob("application/vnd.qemu.qcow2", plain), l.blob("application/vnd.qemu.qcow2", onBase)}})
		}, ErrFormat, "several"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			store := newStore(t)
			image, err := store.Pull(t.Context(), test.image(newLayout(t)), PullOptions{MaxDisk: 16 << 20})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %+v, %v; want %v with %q", image, err, test.want, test.text)
			}
			assertEmpty(t, filepath.Join(store.Root(), imagesDir))
		})
	}
}

func TestPullArtifact(t *testing.T) {
	plain := qcow2File(t)
	titled := func(d v1.Descriptor, title string) v1.Descriptor {
		d.Annotations = map[string]string{v1.AnnotationTitle: title}
		return d
	}
	tests := map[string]struct {
		layer  func(l testLayout) v1.Descriptor
		name   string
		format string
	}{
		"by type":           {func(l testLayout) v1.Descriptor { return l.blob("application/vnd.qemu.qcow2", plain) }, "disk.qcow2", "qcow2"},
		"by title":          {func(l testLayout) v1.Descriptor { return titled(l.blob(v1.MediaTypeImageLayer, plain), "a/b.qcow2") }, "b.qcow2", "qcow2"},
		"img that is qcow2": {func(l testLayout) v1.Descriptor { return titled(l.blob("x/y", plain), "b.img") }, "b.img", "qcow2"},
		"img":               {func(l testLayout) v1.Descriptor { return titled(l.blob("x/y", []byte("\x00boot")), "b.img") }, "b.img", "raw"},
		"raw, whatever":     {func(l testLayout) v1.Descriptor { return titled(l.blob("x/y", plain), "b.raw") }, "b.raw", "raw"},
		"gz":                {func(l testLayout) v1.Descriptor { return titled(l.blob("x/y", zipped(t, "z", plain)), "b.qcow2.gz") }, "b.qcow2", "qcow2"},
		"gz by name only":   {func(l testLayout) v1.Descriptor { return titled(l.blob("x/y", plain), "b.qcow2.gz") }, "b.qcow2", "qcow2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			image, err := newStore(t).Pull(t.Context(), l.write(v1.Manifest{Layers: []v1.Descriptor{test.layer(l)}}), PullOptions{})
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

func checkDigest(t *testing.T, image *Image) {
	t.Helper()
	for _, disk := range image.Disks {
		if got := fileDigest(t, filepath.Join(image.Dir, disk.Name)); got != disk.Digest {
			t.Errorf("%s: digest %s, noted %s", disk.Name, got, disk.Digest)
		}
	}
}
