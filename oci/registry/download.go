package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/transport"
)

// A download reads one blob from a source. When the connection breaks or stalls, it
// reconnects and resumes, until it makes no progress for too long. It does not verify the
// blob: use [transport.Verify].
type download struct {
	ctx    context.Context
	src    transport.Source
	desc   v1.Descriptor
	policy RetryPolicy

	offset int64 // bytes read so far
	body   *connection
}

// OpenDownload connects immediately, and fails if the blob is missing.
func OpenDownload(ctx context.Context, src transport.Source, desc v1.Descriptor, p RetryPolicy) (*download, error) {
	d := &download{ctx: ctx, src: src, desc: desc, policy: p}
	var err error
	d.body, err = Retry(ctx, p, func() (*connection, error) { return d.connect() })
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (d *download) Read(b []byte) (int, error) {
	if d.body == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := d.body.Read(b)
	d.offset += int64(n)
	if n > 0 || err == nil || errors.Is(err, io.EOF) || !isTransient(err) {
		if n > 0 && err != nil && isTransient(err) {
			err = nil // the next Read returns it
		}
		return n, err
	}
	// Only a received byte resets the retries.
	n, err = Retry(d.ctx, d.policy, func() (int, error) {
		_ = d.body.Close() // it has failed already
		body, err := d.connect()
		if err != nil {
			return 0, err
		}
		d.body = body
		n, err := body.Read(b)
		if n > 0 && isTransient(err) {
			err = nil
		}
		return n, keepEOF(err)
	})
	d.offset += int64(n)
	return n, bareEOF(err)
}

// endOfBlob hides io.EOF from [Retry]: it is a result, not a failure.
type endOfBlob struct{ error }

func keepEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return endOfBlob{err}
	}
	return err
}

func bareEOF(err error) error {
	var end endOfBlob
	if errors.As(err, &end) {
		return io.EOF
	}
	return err
}

func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	err := d.body.Close()
	d.body = nil
	return err
}

// connect opens the blob at the current offset.
func (d *download) connect() (*connection, error) {
	c := newConnection(d.ctx, d.policy.StallTimeout)
	err := c.open(d.src, d.desc, d.offset)
	if err != nil {
		return nil, errors.Join(c.cause(err), c.Close())
	}
	c.timer.Stop() // until Read
	return c, nil
}

// A connection is one attempt to read a blob. It ends when no bytes arrive.
type connection struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	body   io.ReadCloser
}

func newConnection(ctx context.Context, stall time.Duration) *connection {
	c := &connection{stall: stall}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.timer = time.AfterFunc(stall, func() { c.cancel(errStalled) })
	return c
}

// open requests the blob from offset on.
func (c *connection) open(src transport.Source, desc v1.Descriptor, offset int64) (err error) {
	if offset > 0 {
		if ranged, ok := src.(transport.RangeSource); ok {
			c.body, err = ranged.BlobAt(c.ctx, desc, offset)
			if err == nil || !errors.Is(err, transport.ErrNoRange) {
				return err
			}
		}
	}
	if c.body, err = src.Blob(c.ctx, desc); err != nil {
		return err
	}
	for skipped := int64(0); skipped < offset; {
		n, err := io.CopyN(io.Discard, readers.Only(c), min(offset-skipped, readers.BufferSize))
		skipped += n
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the blob was longer before
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *connection) Read(b []byte) (int, error) {
	if c.body == nil {
		return 0, io.ErrClosedPipe
	}
	c.timer.Reset(c.stall)
	n, err := c.body.Read(b)
	// The time between reads does not count.
	c.timer.Stop()
	return n, c.cause(err)
}

// cause replaces the error of a stalled connection.
func (c *connection) cause(err error) error {
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(c.ctx), errStalled) {
		return fmt.Errorf("%w for %v: %v", errStalled, c.stall, err)
	}
	return err
}

func (c *connection) Close() error {
	c.timer.Stop()
	c.cancel(nil)
	if c.body == nil {
		return nil
	}
	err := c.body.Close()
	c.body = nil
	return err
}

// A retryingSource retries after transient failures of a source.
type retryingSource struct {
	transport.Source
	policy RetryPolicy
}

func (s retryingSource) Manifest(ctx context.Context, d digest.Digest) (raw []byte, mediaType string, err error) {
	raw, err = Retry(ctx, s.policy, func() ([]byte, error) {
		raw, mediaType, err = s.Source.Manifest(ctx, d)
		return raw, err
	})
	return raw, mediaType, err
}

func (s retryingSource) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	return OpenDownload(ctx, s.Source, desc, s.policy)
}

// WithRetries returns a source that retries after transient failures, and resumes blobs.
func WithRetries(src transport.Source, p RetryPolicy) transport.Source { return retryingSource{src, p} }
