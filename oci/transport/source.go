package transport

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// MaxManifest bounds manifests, indexes and configs, in bytes; registries accept
// no larger ones.
const MaxManifest = 4 << 20

// A Source is where an image comes from. What it returns is not checked: use
// [ReadDocument], [ReadBlob] and [Verify].
type Source interface {
	// Manifest is the manifest or index with digest d and its media type, which may
	// be empty; with an empty d, the one that the reference names.
	Manifest(ctx context.Context, d digest.Digest) (raw []byte, mediaType string, err error)
	// Blob is safe for concurrent use.
	Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error)
	io.Closer
}

// A document is a manifest or an index that was read and checked.
type document struct {
	*format.Document
	Raw    []byte
	Digest digest.Digest
}

// ReadDocument reads the manifest or index that desc describes, or the one that the
// reference names if desc has no digest, and checks it: its digest, its size if desc has
// one, and that it can be read in one way only.
func ReadDocument(ctx context.Context, src Source, desc v1.Descriptor) (document, error) {
	raw, mediaType, err := src.Manifest(ctx, desc.Digest)
	if err != nil {
		return document{}, err
	}
	if len(raw) > MaxManifest {
		return document{}, fmt.Errorf("%w: a manifest of %d bytes, at most %d are accepted", oci.ErrHostile, len(raw), MaxManifest)
	}
	algorithm := digest.Canonical
	if desc.Digest != "" {
		algorithm = desc.Digest.Algorithm()
	}
	got := algorithm.FromBytes(raw)
	if desc.Digest != "" && got != desc.Digest {
		return document{}, fmt.Errorf("%w: manifest %s has digest %s", oci.ErrHostile, desc.Digest, got)
	}
	if desc.Size != 0 && desc.Size != int64(len(raw)) {
		return document{}, fmt.Errorf("%w: manifest %s has %d bytes, its index says %d", oci.ErrHostile, got, len(raw), desc.Size)
	}
	doc, err := format.Parse(raw, format.Claim{By: "its source", MediaType: mediaType}, format.Claim{By: "its index", MediaType: desc.MediaType})
	if err != nil {
		return document{}, FormatError(fmt.Errorf("%s: %w", got, err))
	}
	return document{doc, raw, got}, nil
}

// FormatError adds the sentinel that belongs to an error of package format.
func FormatError(err error) error {
	if errors.Is(err, format.ErrAmbiguous) {
		return fmt.Errorf("%w: %w", oci.ErrHostile, err)
	}
	return fmt.Errorf("%w: %w", oci.ErrFormat, err)
}

// ReadBlob reads a blob of at most limit bytes into memory and checks it.
func ReadBlob(ctx context.Context, src Source, desc v1.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s (%s) of %d bytes, at most %d are accepted", oci.ErrHostile, desc.Digest, desc.MediaType, desc.Size, limit)
	}
	blob, err := src.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(Verify(blob, desc))
}

// A RangeSource is a [Source] that can give the rest of a blob.
type RangeSource interface {
	// BlobAt is the blob from offset on, which is less than its size. The error is
	// errNoRange if only whole blobs can be had.
	BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error)
}

var ErrNoRange = errors.New("the source gives whole blobs only")

// MaxIndexDepth bounds indexes in indexes; a digest cannot name itself, but
// somebody can nest for long.
const MaxIndexDepth = 8
