package oci

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// TestManifestAsLayer: what is a layer of one image and a manifest of another is
// copied as both, in whatever order they come, with all that it names.
func TestManifestAsLayer(t *testing.T) {
	for _, layerFirst := range []bool{true, false} {
		m := newMeddler(t)
		l := newLayout(t)
		inner := l.manifest("inner")
		asLayer := inner
		asLayer.MediaType = "application/octet-stream"
		children := []v1.Descriptor{l.manifest("outer", asLayer), inner}
		if !layerFirst {
			children[0], children[1] = children[1], children[0]
		}
		ref := mustParse(t, m.host+"/vms/index:1")
		if _, err := Push(t.Context(), l.index(children...), ref, TransferOptions{patience: impatient}); err != nil {
			t.Fatal(err)
		}
		layout := filepath.Join(t.TempDir(), "layout")
		if _, err := Fetch(t.Context(), ref, mustParse(t, "oci:"+layout), TransferOptions{patience: impatient}); err != nil {
			t.Fatal(err)
		}
		if want, got := strings.Join(blobNames(t, l.dir), "\n"), strings.Join(blobNames(t, layout), "\n"); want != got {
			t.Errorf("layer first: %v: the layout has\n%s\nwant\n%s", layerFirst, got, want)
		}
	}
}

// TestManyManifests: those of one image, which are kept in memory, are not without
// bounds.
func TestManyManifests(t *testing.T) {
	l := newLayout(t)
	var children []v1.Descriptor
	for i := range 17 {
		layer := l.blob("text/plain", nil)
		layer.Annotations = map[string]string{"x": strings.Repeat(string(rune('a'+i)), maxManifest-2000)}
		children = append(children, l.manifest("", layer))
	}
	m := newMeddler(t)
	_, err := Push(t.Context(), l.index(children...), mustParse(t, m.host+"/vms/index:1"), TransferOptions{patience: impatient})
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "67108864") {
		t.Errorf("got %v, want that the manifests are too large", err)
	}
}
