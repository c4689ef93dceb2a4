package transfer

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/transport"
)

// TestManifestAsLayer: what is a layer of one image and a manifest of another is
// copied as both, in whatever order they come, with all that it names.
func TestManifestAsLayer(t *testing.T) {
	t.Parallel()
	for _, layerFirst := range []bool{true, false} {
		m := ocitest.NewFaultyRegistry(t)
		l := ocitest.NewLayout(t)
		inner := l.Manifest("inner")
		asLayer := inner
		asLayer.MediaType = "application/octet-stream"
		children := []v1.Descriptor{l.Manifest("outer", asLayer), inner}
		if !layerFirst {
			children[0], children[1] = children[1], children[0]
		}
		ref := ocitest.MustParse(t, m.Host+"/vms/index:1")
		if _, err := Push(t.Context(), l.Index(children...), ref, Options{retries: persistent}); err != nil {
			t.Fatal(err)
		}
		layout := filepath.Join(t.TempDir(), "layout")
		if _, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), Options{retries: persistent}); err != nil {
			t.Fatal(err)
		}
		if want, got := strings.Join(ocitest.BlobNames(t, l.Dir), "\n"), strings.Join(ocitest.BlobNames(t, layout), "\n"); want != got {
			t.Errorf("layer first: %v: the layout has\n%s\nwant\n%s", layerFirst, got, want)
		}
	}
}

// TestManyManifests: those of one image, which are kept in memory, are not without
// bounds.
func TestManyManifests(t *testing.T) {
	t.Parallel()
	l := ocitest.NewLayout(t)
	var children []v1.Descriptor
	for i := range 17 {
		layer := l.Blob("text/plain", nil)
		layer.Annotations = map[string]string{"x": strings.Repeat(string(rune('a'+i)), transport.MaxManifest-2000)}
		children = append(children, l.Manifest("", layer))
	}
	m := ocitest.NewFaultyRegistry(t)
	_, err := Push(t.Context(), l.Index(children...), ocitest.MustParse(t, m.Host+"/vms/index:1"), Options{retries: Impatient})
	if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), "67108864") {
		t.Errorf("got %v, want that the manifests are too large", err)
	}
}
