package readers

import (
	"context"
	"io"

	"gitlab-sardine-executor/oci"
)

// onlyReader hides WriteTo, by which io.Copy would bypass the buffer's size.
type onlyReader struct{ io.Reader }

// onlyWriter hides what else a file can do: io.CopyBuffer would let it read from
// the source with a buffer of its own.
type onlyWriter struct{ io.Writer }

// contextReader makes a copy end when its context does.
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

// Counted counts what was read from r.
type Counted struct {
	r io.Reader
	n int64
}

func (c *Counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// BufferSize is the size of the buffers of copies, in bytes.
const BufferSize = 256 << 10

// Only hides what else r can do.
func Only(r io.Reader) io.Reader { return onlyReader{r} }

// OnlyWriter hides what else w can do.
func OnlyWriter(w io.Writer) io.Writer { return onlyWriter{w} }

// WithContext makes reading r end when ctx does.
func WithContext(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

// Counting tells transfer what is read from r.
func Counting(r io.Reader, transfer oci.Transfer) io.Reader { return &countingReader{r, transfer} }

// NewCounted counts what is read from r, beginning with n.
func NewCounted(r io.Reader, n int64) *Counted { return &Counted{r: r, n: n} }

// Count is the number of bytes read.
func (c *Counted) Count() int64 { return c.n }
