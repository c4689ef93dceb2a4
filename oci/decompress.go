package oci

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"
	"github.com/therootcompany/xz"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci/format"
)

// Buffers between the goroutines of one stream: network and digest, then
// decompression, then digest and disk. They bound the memory of a pull.
const (
	readBuffers = 8
	readBuffer  = 512 << 10
	// zstdWindow is the largest window that is accepted: zstd --long=27.
	zstdWindow = 128 << 20
	// pieceWindow is the largest in pieces, of which many are unpacked at once.
	pieceWindow = 8 << 20
)

var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicXZ   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// isSkippable: the magic bytes of a frame that zstd skips (RFC 8878, 3.1.2), as pzstd
// puts before each of its own.
func isSkippable(magic []byte) bool {
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

// A plainStream is a decompressed stream. Once Close has returned, nothing reads
// from the compressed one any more.
type plainStream struct {
	io.Reader
	gunzip *gunzip        // nil if it is no gzip
	closer []func() error // in order
}

// Name of the file in the gzip header, as its packer called it and not to be
// trusted; empty if there is none.
func (p *plainStream) Name() string {
	if p.gunzip == nil {
		return ""
	}
	return p.gunzip.name
}

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

// A decompression says how to decompress a stream.
type decompression struct {
	compression format.Compression
	window      int // the largest that zstd and xz may ask for, in bytes
	// wanted and from are those of gunzip; nil where a stream starts at its beginning
	// and needs no marks.
	wanted func(compressed int64) bool
	from   *gzipMark
}

// ahead reads r in a goroutine of its own and decompresses what comes.
func (d decompression) ahead(r io.Reader) (*plainStream, error) {
	ahead, err := readahead.NewReaderSize(r, readBuffers, readBuffer)
	if err != nil {
		return nil, err
	}
	p := &plainStream{closer: []func() error{ahead.Close}}
	return d.start(p, bufio.NewReader(ahead))
}

// direct decompresses r as it is read.
func (d decompression) direct(r io.Reader) (*plainStream, error) {
	return d.start(&plainStream{}, bufio.NewReaderSize(r, 64<<10))
}

func (d decompression) start(p *plainStream, r *bufio.Reader) (*plainStream, error) {
	if err := d.decode(p, r); err != nil {
		return nil, errors.Join(&damagedError{err}, p.Close())
	}
	return p, nil
}

func (d decompression) decode(p *plainStream, r *bufio.Reader) (err error) {
	switch d.compression {
	case format.None:
		p.Reader = r
		return nil
	case format.AppleLZ4:
		p.Reader = newAppleLZ4(r)
		return nil
	}
	if d.from != nil {
		if p.gunzip, err = resumeGunzip(r, *d.from, d.wanted); err != nil {
			return err
		}
		p.Reader = p.gunzip
		return nil
	}
	magic, err := r.Peek(len(magicXZ))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case d.compression == format.Gzip, d.compression != format.Zstd && bytes.HasPrefix(magic, magicGzip):
		if p.gunzip, err = newGunzip(r, d.wanted); err != nil {
			return err
		}
		p.Reader = p.gunzip
		return nil
	case d.compression == format.Zstd, bytes.HasPrefix(magic, magicZstd), isSkippable(magic):
		return d.zstd(p, r)
	case bytes.HasPrefix(magic, magicXZ):
		// Of github.com/ulikunitz/xz, which is better kept, DictCap is the least that is
		// allocated: a header of 12 bytes can ask for 4 GiB.
		p.Reader, err = xz.NewReader(r, uint32(d.window))
		return err
	case d.compression == format.Maybe, qcow2.IsQCOW2(magic):
		p.Reader = r
		return nil
	}
	return fmt.Errorf("begins with % x: not gzip, xz, zstd or qcow2", magic)
}

// pieceDecoders are for windows of pieceWindow: an image has thousands of pieces.
var pieceDecoders sync.Pool

func (d decompression) zstd(p *plainStream, r io.Reader) (err error) {
	if d.window != pieceWindow {
		// One goroutine for the blocks of a frame is what bounds the memory.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(d.window)))
		if err != nil {
			return err
		}
		p.Reader = z
		p.closer = append([]func() error{func() error { z.Close(); return nil }}, p.closer...)
		return nil
	}
	z, _ := pieceDecoders.Get().(*zstd.Decoder)
	if z == nil {
		if z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(pieceWindow)); err != nil {
			return err
		}
	}
	p.Reader = z
	p.closer = append([]func() error{func() error {
		err := z.Reset(nil)
		pieceDecoders.Put(z)
		return err
	}}, p.closer...)
	return z.Reset(r)
}
