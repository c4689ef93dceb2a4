package oci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A rangeSource is a [source] that can give the rest of a blob.
type rangeSource interface {
	// BlobAt is the blob from offset on, which is less than its size. The error is
	// errNoRange if only whole blobs can be had.
	BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error)
}

var errNoRange = errors.New("the source gives whole blobs only")

func (s *layoutSource) BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	blob, err := s.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	seeker, ok := blob.(io.Seeker)
	if !ok {
		return nil, errors.Join(errNoRange, blob.Close())
	}
	if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("reading OCI layout: %w", err), blob.Close())
	}
	return blob, nil
}
