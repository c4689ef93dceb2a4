package oci

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	"github.com/klauspost/readahead"
	"github.com/ulikunitz/xz"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci/format"
)

// Buffers between the goroutines of one stream: network and digest, then
// decompression, then digest and disk. They bound the memory of a pull.
const (
	readBuffers    = 8
	readBuffer     = 512 << 10
	inflateBuffers = 4
	inflateBuffer  = 1 << 20
	copyBuffer     = 256 << 10
	// zstdWindow is the largest window that is accepted: zstd --long=27.
	zstdWindow = 128 << 20
)

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicXZ   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// A plainStream is a decompressed stream. Once Close has returned, nothing reads
// from the compressed one any more.
type plainStream struct {
	io.Reader
	// name is the file name in the gzip header; empty if there is none.
	name   string
	closer []func() error // in order
}

// Name of the file as its packer called it; not to be trusted.
func (p *plainStream) Name() string { return p.name }

func (p *plainStream) Close() error {
	var err error
	for _, c := range p.closer {
		err = errors.Join(err, c())
	}
	p.closer = nil
	return err
}

// Read marks every error as one of the stream's content. Whether the cause lies
// further down, [blobSequence.explain] tells.
func (p *plainStream) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &damagedError{err}
	}
	return n, err
}

// damagedError: the bytes that came are not what the compression promises.
type damagedError struct{ err error }

func (e *damagedError) Error() string { return "damaged layer: " + e.err.Error() }
func (e *damagedError) Unwrap() error { return e.err }

// decompress reads r in a goroutine of its own and decompresses in another.
func decompress(r io.Reader, compression format.Compression) (*plainStream, error) {
	ahead, err := readahead.NewReaderSize(r, readBuffers, readBuffer)
	if err != nil {
		return nil, err
	}
	p := &plainStream{closer: []func() error{ahead.Close}}
	if err := p.start(bufio.NewReader(ahead), compression); err != nil {
		return nil, errors.Join(&damagedError{err}, p.Close())
	}
	return p, nil
}

func (p *plainStream) start(r *bufio.Reader, compression format.Compression) error {
	if compression == format.None {
		p.Reader = r
		return nil
	}
	magic, err := r.Peek(len(magicXZ))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case compression == format.Gzip, bytes.HasPrefix(magic, magicGzip):
		return p.startGzip(r)
	case qcow2.IsQCOW2(magic):
		p.Reader = r
		return nil
	case bytes.HasPrefix(magic, magicZstd):
		// One goroutine for the blocks of a frame is what bounds the memory.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return err
		}
		p.Reader = z
		p.closer = append([]func() error{func() error { z.Close(); return nil }}, p.closer...)
		return nil
	case bytes.HasPrefix(magic, magicXZ):
		p.Reader, err = xz.ReaderConfig{DictCap: zstdWindow}.NewReader(r)
		return err
	}
	return fmt.Errorf("begins with % x: not gzip, xz, zstd or qcow2", magic)
}

func (p *plainStream) startGzip(r io.Reader) error {
	z, err := pgzip.NewReaderN(r, inflateBuffer, inflateBuffers)
	if err != nil {
		return err
	}
	p.Reader, p.name = z, z.Name
	// The error of Close is the one that Read has returned.
	p.closer = append([]func() error{func() error { _ = z.Close(); return nil }}, p.closer...)
	return nil
}
