package ocitest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
)

// A TestLayout is an OCI layout that a test writes by hand.
type TestLayout struct {
	T   *testing.T
	Dir string
}

func NewLayout(t *testing.T) TestLayout {
	t.Helper()
	return TestLayout{t, t.TempDir()}
}

func (l TestLayout) Blob(mediaType string, content []byte) v1.Descriptor {
	l.T.Helper()
	d := digest.FromBytes(content)
	name := filepath.Join(l.Dir, "blobs", "sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		l.T.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		l.T.Fatal(err)
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

func (l TestLayout) Write(manifest v1.Manifest) oci.Reference {
	l.T.Helper()
	manifest.SchemaVersion, manifest.MediaType = 2, v1.MediaTypeImageManifest
	if manifest.Config.Digest == "" {
		manifest.Config = l.Blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		l.T.Fatal(err)
	}
	index, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{l.Blob(v1.MediaTypeImageManifest, raw)}})
	if err != nil {
		l.T.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "index.json"), index, 0o644); err != nil {
		l.T.Fatal(err)
	}
	return MustParse(l.T, "oci:"+l.Dir)
}

// Zipped is content as one gzip stream with a file name.
func Zipped(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level(content))
	if err != nil {
		t.Fatal(err)
	}
	z.Name = name
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// level returns the level at which content is compressed: quickly if there is much of it.
func level(content []byte) int {
	if len(content) > 1<<20 {
		return gzip.BestSpeed
	}
	return gzip.DefaultCompression
}

const (
	Qcow2Layer = "application/x-qemu-disk+gzip"
	RawLayer   = "application/octet-stream+gzip"
)

// SardinecakeOf writes an image with the given disk layers.
func (l TestLayout) SardinecakeOf(disks ...v1.Descriptor) oci.Reference {
	l.T.Helper()
	layers := []v1.Descriptor{l.Blob("application/vnd.libvirt.domain.config+xml", []byte("<domain/>"))}
	return l.Write(v1.Manifest{
		Config: l.Blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","history":[{"created":1795395233.0697207}]}`)),
		Layers: append(layers, disks...),
	})
}

// qcow2Files are the files that Qcow2File has made, by its arguments.
var qcow2Files sync.Map

// Qcow2File returns the content of a file that qemu-img makes.
func Qcow2File(t *testing.T, args ...string) []byte {
	t.Helper()
	made := strings.Join(args, "\x00")
	if content, ok := qcow2Files.Load(made); ok {
		return bytes.Clone(content.([]byte))
	}
	dir := t.TempDir()
	Command(t, dir, "qemu-img", append([]string{"create", "-q", "-f", "qcow2", "-u"}, append(args, "disk", "1M")...)...)
	content, err := os.ReadFile(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	qcow2Files.Store(made, content)
	return bytes.Clone(content)
}

// put writes an index to a layout, as the only one.
func (l TestLayout) Index(children ...v1.Descriptor) oci.Reference {
	l.T.Helper()
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children})
	if err != nil {
		l.T.Fatal(err)
	}
	top, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{l.Blob(v1.MediaTypeImageIndex, raw)}})
	if err != nil {
		l.T.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "index.json"), top, 0o644); err != nil {
		l.T.Fatal(err)
	}
	return MustParse(l.T, "oci:"+l.Dir)
}

// Manifest adds one with a layer of its own and those given.
func (l TestLayout) Manifest(content string, more ...v1.Descriptor) v1.Descriptor {
	l.T.Helper()
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: l.Blob(v1.MediaTypeEmptyJSON, []byte("{}")),
		Layers: append([]v1.Descriptor{l.Blob("text/plain", []byte(content))}, more...),
	})
	if err != nil {
		l.T.Fatal(err)
	}
	return l.Blob(v1.MediaTypeImageManifest, raw)
}

// Put writes a manifest as a blob, of whatever kind, and describes it.
func (l TestLayout) Put(manifest v1.Manifest) v1.Descriptor {
	l.T.Helper()
	manifest.SchemaVersion = 2
	if manifest.MediaType == "" {
		manifest.MediaType = v1.MediaTypeImageManifest
	}
	if manifest.Config.Digest == "" {
		manifest.Config = l.Blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		l.T.Fatal(err)
	}
	return l.Blob(manifest.MediaType, raw)
}

func (l TestLayout) PutIndex(children ...v1.Descriptor) v1.Descriptor {
	l.T.Helper()
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: children}
	index.SchemaVersion = 2
	raw, err := json.Marshal(index)
	if err != nil {
		l.T.Fatal(err)
	}
	return l.Blob(v1.MediaTypeImageIndex, raw)
}

// Named makes a manifest or an index the layout's only image.
func (l TestLayout) Named(desc v1.Descriptor) oci.Reference {
	l.T.Helper()
	raw, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{desc}})
	if err != nil {
		l.T.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "index.json"), raw, 0o644); err != nil {
		l.T.Fatal(err)
	}
	return MustParse(l.T, "oci:"+l.Dir)
}

func (l TestLayout) Config(text string) v1.Descriptor {
	return l.Blob(v1.MediaTypeImageConfig, []byte(text))
}

func (l TestLayout) Container(config string, layers ...[]byte) v1.Descriptor {
	m := v1.Manifest{Config: l.Config(config)}
	for _, layer := range layers {
		m.Layers = append(m.Layers, l.Blob(v1.MediaTypeImageLayer, layer))
	}
	return l.Put(m)
}
