package readers

import (
	"context"
	"io"

	"gitlab-sardine-executor/oci"
)

// onlyReader hides WriteTo, which would make io.CopyBuffer ignore its buffer.
type onlyReader struct{ io.Reader }

// onlyWriter hides ReadFrom, which would make io.CopyBuffer ignore its buffer.
type onlyWriter struct{ io.Writer }

// contextReader fails once its context is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

type countingReader struct {
	r        io.Reader
	transfer oci.Transfer
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.transfer.Add(int64(n))
	return n, err
}

// A Counted reader counts the bytes read from r.
type Counted struct {
	r io.Reader
	n int64
}

func (c *Counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// BufferSize is the size of copy buffers, in bytes.
const BufferSize = 256 << 10

// Only hides all methods of r but Read.
func Only(r io.Reader) io.Reader { return onlyReader{r} }

// OnlyWriter hides all methods of w but Write.
func OnlyWriter(w io.Writer) io.Writer { return onlyWriter{w} }

// WithContext returns a reader of r that fails once ctx is done.
func WithContext(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

// Counting returns a reader of r that reports the bytes read to transfer.
func Counting(r io.Reader, transfer oci.Transfer) io.Reader { return &countingReader{r, transfer} }

// NewCounted counts the bytes read from r, starting at n.
func NewCounted(r io.Reader, n int64) *Counted { return &Counted{r: r, n: n} }

// Count returns the number of bytes read.
func (c *Counted) Count() int64 { return c.n }
