package transport

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A Destination is where an image goes, blob by blob, then manifest by manifest,
// a child before the index that names it.
type Destination interface {
	// Has reports whether a blob is there already, whole. It and PutBlob are safe
	// for concurrent use.
	Has(ctx context.Context, desc v1.Descriptor) (bool, error)
	// PutBlob stores a blob. content fails before its end if it is not what desc
	// says; nothing is kept then.
	PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error
	PutManifest(ctx context.Context, m RawManifest) error
	// Commit puts the image under its name. Without it, the name stands for what it
	// stood for before.
	Commit(ctx context.Context, top RawManifest) error
	io.Closer
}

// A Discarder is a destination that can take back the blobs it was given. Where
// there is no room, half an image would only be in the way.
type Discarder interface{ Discard() error }

// A RawManifest is a manifest or an index as it was found: to be copied byte for
// byte, for only so does it keep its digest.
type RawManifest struct {
	Raw       []byte
	MediaType string
	Digest    digest.Digest
}
