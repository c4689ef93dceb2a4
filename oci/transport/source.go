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

// MaxManifest is the maximum size of a manifest, an index or a config, in bytes. Registries
// accept no larger ones.
const MaxManifest = 4 << 20

// A Source provides an image. It does not check what it returns: use [ReadDocument],
// [ReadBlob] and [Verify].
type Source interface {
	// Manifest returns the manifest or index with digest d, or the one that the reference
	// names if d is empty, and its media type if the source knows it.
	Manifest(ctx context.Context, d digest.Digest) (raw []byte, mediaType string, err error)
	// Blob is safe for concurrent use.
	Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error)
	io.Closer
}

// A document is a manifest or an index that has been checked.
type document struct {
	*format.Document
	Raw    []byte
	Digest digest.Digest
}

// ReadDocument reads the manifest or index that desc describes, or the one that the
// reference names if desc has no digest. It checks the digest, the size if desc has one,
// and that there is only one way to read it.
func ReadDocument(ctx context.Context, src Source, desc v1.Descriptor) (document, error) {
	raw, mediaType, err := src.Manifest(ctx, desc.Digest)
	if err != nil {
		return document{}, err
	}
	if len(raw) > MaxManifest {
		return document{}, fmt.Errorf("%w: a manifest of %d bytes, at most %d are accepted", oci.ErrInvalid, len(raw), MaxManifest)
	}
	algorithm := digest.Canonical
	if desc.Digest != "" {
		algorithm = desc.Digest.Algorithm()
	}
	got := algorithm.FromBytes(raw)
	if desc.Digest != "" && got != desc.Digest {
		return document{}, fmt.Errorf("%w: manifest %s has digest %s", oci.ErrInvalid, desc.Digest, got)
	}
	if desc.Size != 0 && desc.Size != int64(len(raw)) {
		return document{}, fmt.Errorf("%w: manifest %s has %d bytes, its index says %d", oci.ErrInvalid, got, len(raw), desc.Size)
	}
	doc, err := format.Parse(raw, format.Claim{By: "its source", MediaType: mediaType}, format.Claim{By: "its index", MediaType: desc.MediaType})
	if err != nil {
		return document{}, FormatError(fmt.Errorf("%s: %w", got, err))
	}
	return document{doc, raw, got}, nil
}

// FormatError wraps an error of package format with the error of package oci that it
// corresponds to.
func FormatError(err error) error {
	if errors.Is(err, format.ErrAmbiguous) {
		return fmt.Errorf("%w: %w", oci.ErrInvalid, err)
	}
	return fmt.Errorf("%w: %w", oci.ErrFormat, err)
}

// ReadBlob reads a blob of at most limit bytes into memory and checks it.
func ReadBlob(ctx context.Context, src Source, desc v1.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s (%s) of %d bytes, at most %d are accepted", oci.ErrInvalid, desc.Digest, desc.MediaType, desc.Size, limit)
	}
	blob, err := src.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(Verify(blob, desc))
}

// A RangeSource is a [Source] that can return a blob from an offset on.
type RangeSource interface {
	// BlobAt returns the blob from offset on; offset is less than its size. The error is
	// [ErrNoRange] if the source only has whole blobs.
	BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error)
}

// ErrNoRange: the source only has whole blobs.
var ErrNoRange = errors.New("the source cannot return a part of a blob")

// MaxIndexDepth is the maximum nesting of indexes. A digest cannot refer to itself, but an
// image can nest indexes deeply.
const MaxIndexDepth = 8
