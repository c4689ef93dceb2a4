package transport

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A Destination receives an image: first its blobs, then its manifests, each child before
// the index that lists it.
type Destination interface {
	// Has reports whether the destination has the complete blob. Has and PutBlob are safe
	// for concurrent use.
	Has(ctx context.Context, desc v1.Descriptor) (bool, error)
	// PutBlob stores a blob. content returns an error before its end if it does not match
	// desc; the destination then keeps nothing of it.
	PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error
	PutManifest(ctx context.Context, m RawManifest) error
	// Commit points the name at the image. Without it, the name keeps its old meaning.
	Commit(ctx context.Context, top RawManifest) error
	io.Closer
}

// A Discarder is a destination that can remove the blobs written so far: on a full disk,
// half an image only wastes space.
type Discarder interface{ Discard() error }

// A RawManifest is a manifest or an index byte for byte, so that a copy keeps its digest.
type RawManifest struct {
	Raw       []byte
	MediaType string
	Digest    digest.Digest
}
