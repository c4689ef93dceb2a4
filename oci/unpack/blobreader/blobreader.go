package blobreader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/transport"
	"gitlab-sardine-executor/oci/unpack/decompress"
)

// A Sequence reads blobs as one stream and verifies each.
type Sequence struct {
	ctx      context.Context
	src      transport.Source
	blobs    []v1.Descriptor // not opened yet
	progress oci.Progress
	received *atomic.Int64 // of all blobs of the image, in bytes

	coming   chan openedBlob // the next blob, which is opened in the background; may be nil
	open     io.Closer       // nil if none is
	reader   *transport.Verifier
	transfer oci.Transfer
	err      error
}

func (b *Sequence) Read(p []byte) (int, error) {
	for {
		if b.err == nil {
			b.err = b.ctx.Err()
		}
		if b.err != nil {
			return 0, b.err
		}
		if b.reader == nil {
			if b.err = b.next(); b.err != nil {
				return 0, b.err
			}
		}
		n, err := b.reader.Read(p)
		b.transfer.Add(int64(n))
		b.received.Add(int64(n))
		if err != nil {
			b.end(err)
		}
		if n > 0 || b.err != nil {
			return n, b.err
		}
	}
}

// An openedBlob is a blob, or the error of opening it.
type openedBlob struct {
	content io.ReadCloser
	err     error
}

// next switches to the next blob and starts to open the one after it, so that a stream of
// many blobs does not wait for each response. Only the buffers of the network read ahead.
func (b *Sequence) next() error {
	if len(b.blobs) == 0 {
		return io.EOF
	}
	desc := b.blobs[0]
	if b.coming == nil {
		b.startOpening()
	}
	blob := <-b.coming
	b.coming = nil
	if blob.err != nil {
		return blob.err
	}
	if b.blobs = b.blobs[1:]; len(b.blobs) > 0 {
		b.startOpening()
	}
	b.open, b.reader = blob.content, transport.Verify(blob.content, desc)
	b.transfer = b.progress.Start(transport.ShortDigest(desc), desc.Size)
	return nil
}

func (b *Sequence) startOpening() {
	coming, desc := make(chan openedBlob, 1), b.blobs[0]
	b.coming = coming
	go func() {
		content, err := b.src.Blob(b.ctx, desc)
		coming <- openedBlob{content, err}
	}()
}

// end closes the current blob.
func (b *Sequence) end(err error) {
	if errors.Is(err, io.EOF) {
		err = nil
	}
	err = errors.Join(err, b.open.Close())
	b.transfer.Done(err)
	b.open, b.reader, b.err = nil, nil, err
}

// Finish reads and verifies the rest.
func (b *Sequence) Finish() error {
	_, err := io.Copy(io.Discard, readers.Only(b))
	return err
}

// Explain replaces the error of a decompressor by its cause, if a blob cannot be read or does
// not match its descriptor.
func (b *Sequence) Explain(err error) error {
	var damaged *decompress.DamagedError
	if !errors.As(err, &damaged) {
		return err
	}
	if cause := b.Finish(); cause != nil {
		return cause
	}
	return fmt.Errorf("%w: %w", oci.ErrFormat, err)
}

func (b *Sequence) Close() error {
	if b.coming != nil {
		go closeUnread(b.coming)
		b.coming = nil
	}
	if b.open != nil {
		b.end(context.Cause(b.ctx))
	}
	if b.err == nil {
		b.err = fs.ErrClosed
	}
	return nil
}

// closeUnread closes a blob that was opened in the background.
func closeUnread(coming <-chan openedBlob) {
	if blob := <-coming; blob.err == nil {
		_ = blob.content.Close()
	}
}

// New returns a Sequence of blobs of src. It adds the bytes read to received.
func New(ctx context.Context, src transport.Source, blobs []v1.Descriptor, progress oci.Progress, received *atomic.Int64) *Sequence {
	return &Sequence{ctx: ctx, src: src, blobs: blobs, progress: progress, received: received}
}
