package oci

import (
	"context"
	"io"
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
	transfer Transfer
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.transfer.Add(int64(n))
	return n, err
}

// countedReader counts what was read from r.
type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// copyBuffer is the size of the buffers of copies, in bytes.
const copyBuffer = 256 << 10

// newOnlyReader hides what else r can do.
func newOnlyReader(r io.Reader) io.Reader { return onlyReader{r} }

// newOnlyWriter hides what else w can do.
func newOnlyWriter(w io.Writer) io.Writer { return onlyWriter{w} }

// newContextReader makes reading r end when ctx does.
func newContextReader(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

// newCountingReader tells transfer what is read from r.
func newCountingReader(r io.Reader, transfer Transfer) io.Reader { return &countingReader{r, transfer} }

// newCountedReader counts what is read from r, beginning with n.
func newCountedReader(r io.Reader, n int64) *countedReader { return &countedReader{r: r, n: n} }

// Count is the number of bytes read.
func (c *countedReader) Count() int64 { return c.n }
