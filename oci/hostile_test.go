package oci

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A testLayout is an OCI layout that a test writes by hand.
type testLayout struct {
	t   *testing.T
	dir string
}

func newLayout(t *testing.T) testLayout {
	t.Helper()
	return testLayout{t, t.TempDir()}
}

func (l testLayout) blob(mediaType string, content []byte) v1.Descriptor {
	l.t.Helper()
	d := digest.FromBytes(content)
	name := filepath.Join(l.dir, "blobs", "sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (l testLayout) write(manifest v1.Manifest) Reference {
	l.t.Helper()
	manifest.SchemaVersion, manifest.MediaType = 2, v1.MediaTypeImageManifest
	if manifest.Config.Digest == "" {
		manifest.Config = l.blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		l.t.Fatal(err)
	}
	index, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{l.blob(v1.MediaTypeImageManifest, raw)}})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), index, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return mustParse(l.t, "oci:"+l.dir)
}

// zipped is content as one gzip stream with a file name.
func zipped(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Name = name
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const (
	qcow2Layer = "application/x-qemu-disk+gzip"
	rawLayer   = "application/octet-stream+gzip"
)

// sardinecakeOf writes an image with the given disk layers.
func (l testLayout) sardinecakeOf(disks ...v1.Descriptor) Reference {
	l.t.Helper()
	layers := []v1.Descriptor{l.blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>"))}
	return l.write(v1.Manifest{
		Config: l.blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","history":[{"created":1795395233.0697207}]}`)),
		Layers: append(layers, disks...),
	})
}

// qcow2File makes a file with qemu-img and returns its content.
func qcow2File(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	command(t, dir, "qemu-img", append([]string{"create", "-q", "-f", "qcow2", "-u"}, append(args, "disk", "1M")...)...)
	content, err := os.ReadFile(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

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
