package oci

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
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

// put writes an index to a layout, as the only one.
func (l testLayout) index(children ...v1.Descriptor) Reference {
	l.t.Helper()
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children})
	if err != nil {
		l.t.Fatal(err)
	}
	top, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{l.blob(v1.MediaTypeImageIndex, raw)}})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), top, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return mustParse(l.t, "oci:"+l.dir)
}

// manifest adds one with a layer of its own and those given.
func (l testLayout) manifest(content string, more ...v1.Descriptor) v1.Descriptor {
	l.t.Helper()
	raw, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: l.blob(v1.MediaTypeEmptyJSON, []byte("{}")),
		Layers: append([]v1.Descriptor{l.blob("text/plain", []byte(content))}, more...),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(v1.MediaTypeImageManifest, raw)
}

// put writes a manifest as a blob, of whatever kind, and describes it.
func (l testLayout) put(manifest v1.Manifest) v1.Descriptor {
	l.t.Helper()
	manifest.SchemaVersion = 2
	if manifest.MediaType == "" {
		manifest.MediaType = v1.MediaTypeImageManifest
	}
	if manifest.Config.Digest == "" {
		manifest.Config = l.blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(manifest.MediaType, raw)
}

func (l testLayout) putIndex(children ...v1.Descriptor) v1.Descriptor {
	l.t.Helper()
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: children}
	index.SchemaVersion = 2
	raw, err := json.Marshal(index)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.blob(v1.MediaTypeImageIndex, raw)
}

// named makes a manifest or an index the layout's only image.
func (l testLayout) named(desc v1.Descriptor) Reference {
	l.t.Helper()
	raw, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{desc}})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), raw, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return mustParse(l.t, "oci:"+l.dir)
}

func (l testLayout) config(text string) v1.Descriptor {
	return l.blob(v1.MediaTypeImageConfig, []byte(text))
}

func (l testLayout) container(config string, layers ...[]byte) v1.Descriptor {
	m := v1.Manifest{Config: l.config(config)}
	for _, layer := range layers {
		m.Layers = append(m.Layers, l.blob(v1.MediaTypeImageLayer, layer))
	}
	return l.put(m)
}
