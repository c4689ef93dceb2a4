package transfer

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
)

// manifestSource has one manifest, whatever is asked for.
type manifestSource struct{ raw []byte }

func (s manifestSource) Manifest(context.Context, digest.Digest) ([]byte, string, error) {
	return s.raw, "", nil
}

func (manifestSource) Blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

func (manifestSource) Close() error { return nil }

// FuzzImageTree: a registry's manifests and indexes are anybody's, too.
func FuzzImageTree(f *testing.F) {
	sum := digest.FromString("x").String()
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"` + sum + `"}]}`))
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"` + sum + `","size":1},"layers":[{"digest":"` + sum + `","size":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tree := &imageTree{seen: map[digest.Digest]bool{}, seenBlobs: map[digest.Digest]bool{}}
		if err := tree.walk(t.Context(), manifestSource{raw}, v1.Descriptor{}, 0); err != nil {
			if !oci.IsPermanent(err) {
				t.Errorf("%q: %v may pass", raw, err)
			}
			return
		}
		for _, desc := range tree.blobs {
			if desc.Digest.Validate() != nil || desc.Size < 0 {
				t.Errorf("%q: blob %+v", raw, desc)
			}
		}
	})
}
