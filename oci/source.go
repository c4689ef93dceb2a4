package oci

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds manifests, indexes and configs, in bytes; registries accept
// no larger ones.
const maxManifest = 4 << 20

// A source is where an image comes from. What it returns is not checked: use
// [readManifest], [readBlob] and [verify].
type source interface {
	// Manifest is the manifest or index with digest d and its media type, which may
	// be empty; with an empty d, the one that the reference names.
	Manifest(ctx context.Context, d digest.Digest) (raw []byte, mediaType string, err error)
	// Blob is safe for concurrent use.
	Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error)
	io.Closer
}

func openSource(ctx context.Context, ref Reference, creds Credentials) (source, error) {
	switch {
	case ref.IsLayout():
		return openLayout(ref)
	case ref.named != nil:
		return openRegistry(ctx, ref, creds)
	}
	return nil, fmt.Errorf("%w: empty", ErrReference)
}

// readManifest reads the manifest with digest want, or the one that the
// reference names if want is empty, and checks it.
func readManifest(ctx context.Context, src source, want digest.Digest) (raw []byte, mediaType string, got digest.Digest, err error) {
	raw, mediaType, err = src.Manifest(ctx, want)
	if err != nil {
		return nil, "", "", err
	}
	if len(raw) > maxManifest {
		return nil, "", "", fmt.Errorf("%w: a manifest of %d bytes, at most %d are accepted", ErrHostile, len(raw), maxManifest)
	}
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	got = algorithm.FromBytes(raw)
	if want != "" && got != want {
		return nil, "", "", fmt.Errorf("%w: manifest %s has digest %s", ErrHostile, want, got)
	}
	return raw, mediaType, got, nil
}

// readBlob reads a blob of at most limit bytes into memory and checks it.
func readBlob(ctx context.Context, src source, desc v1.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s (%s) of %d bytes, at most %d are accepted", ErrHostile, desc.Digest, desc.MediaType, desc.Size, limit)
	}
	blob, err := src.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(verify(blob, desc))
}
