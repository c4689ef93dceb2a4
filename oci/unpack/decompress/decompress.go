package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
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

// Buffers between the goroutines of a stream, which limit the memory of a pull.
const (
	readBuffers = 8
	readBuffer  = 512 << 10
	// ZstdWindow is the maximum window for zstd, as of zstd --long=27.
	ZstdWindow = 128 << 20
	// ChunkWindow is the maximum window for chunks; many are unpacked at once.
	ChunkWindow = 8 << 20
)

var (
	MagicGzip = []byte{0x1f, 0x8b}
	MagicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	MagicXZ   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// isBzip2 recognizes bzip2: "BZh", a digit, and the magic of the first block or, if the stream
// is empty, of its end.
func isBzip2(head []byte) bool {
	return len(head) >= peeked && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:peeked]) == "1AY&SY" || string(head[4:peeked]) == "\x17\x72\x45\x38\x50\x90")
}

const sector = 512

// isPartitioned reports whether a disk begins with a boot sector, or with a GUID partition table
// in sectors of 512 bytes.
func isPartitioned(head []byte) bool {
	return len(head) >= sector && head[510] == 0x55 && head[511] == 0xaa ||
		len(head) > sector && bytes.HasPrefix(head[sector:], []byte("EFI PART"))
}

// peeked is how many bytes are enough to recognize a compression.
const peeked = 10

// isSkippable recognizes a skippable frame of zstd (RFC 8878, 3.1.2). pzstd writes one before
// each frame.
func isSkippable(magic []byte) bool {
	return len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

// A Stream is a decompressed stream. Once Close has returned, nothing reads the compressed
// stream any more.
type Stream struct {
	io.Reader
	gzip   *gzipReader    // nil for other compressions
	closer []func() error // in order
}

// Name returns the untrusted file name in the gzip header; empty if there is none.
func (p *Stream) Name() string {
	if p.gzip == nil {
		return ""
	}
	return p.gzip.name
}

// Checkpoint returns the place at which the last Read ended, if decompression can
// resume there; nil otherwise.
func (p *Stream) Checkpoint() *Checkpoint {
	if p.gzip == nil {
		return nil
	}
	return p.gzip.checkpoint()
}

// Close stops reading the compressed stream.
func (p *Stream) Close() error {
	var err error
	for _, c := range p.closer {
		err = errors.Join(err, c())
	}
	p.closer = nil
	return err
}

// Read returns errors as [DamagedError]. If the cause is the compressed stream itself,
// blobreader.Sequence.Explain finds it.
func (p *Stream) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &DamagedError{err}
	}
	return n, err
}

// A DamagedError says that the compressed data is invalid.
type DamagedError struct{ Err error }

func (e *DamagedError) Error() string { return "damaged layer: " + e.Err.Error() }
func (e *DamagedError) Unwrap() error { return e.Err }

// Options say how to decompress a stream.
type Options struct {
	Compression format.Compression
	Window      int // maximum window or dictionary of zstd and xz, in bytes
	// WantCheckpoint reports whether to stop for a checkpoint at an offset of the
	// compressed stream; nil means never. Resume is a checkpoint to start from; nil means
	// the beginning.
	WantCheckpoint func(compressed int64) bool
	Resume         *Checkpoint
}

// aheadBuffers are those of streams that were closed. An image may have many layers.
var aheadBuffers = sync.Pool{New: func() any {
	var buffers [readBuffers][]byte
	for i := range buffers {
		buffers[i] = make([]byte, readBuffer)
	}
	return &buffers
}}

// OpenAhead decompresses r, and reads it in another goroutine.
func (d Options) OpenAhead(r io.Reader) (*Stream, error) {
	buffers := aheadBuffers.Get().(*[readBuffers][]byte)
	ahead, err := readahead.NewReaderBuffer(r, buffers[:])
	if err != nil {
		return nil, err
	}
	p := &Stream{closer: []func() error{ahead.Close, func() error { aheadBuffers.Put(buffers); return nil }}}
	return d.start(p, bufio.NewReader(ahead))
}

// Open decompresses r.
func (d Options) Open(r io.Reader) (*Stream, error) {
	return d.start(&Stream{}, bufio.NewReaderSize(r, 64<<10))
}

func (d Options) start(p *Stream, r *bufio.Reader) (*Stream, error) {
	if err := d.decode(p, r); err != nil {
		return nil, errors.Join(&DamagedError{err}, p.Close())
	}
	return p, nil
}

func (d Options) decode(p *Stream, r *bufio.Reader) (err error) {
	switch d.Compression {
	case format.None:
		p.Reader = r
		return nil
	case format.AppleLZ4:
		p.Reader = newAppleLZ4(r)
		return nil
	}
	if d.Resume != nil {
		if p.gzip, err = resumeGzip(r, *d.Resume, d.WantCheckpoint); err != nil {
			return err
		}
		p.Reader = p.gzip
		return nil
	}
	magic, err := r.Peek(2 * sector)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case d.Compression == format.Gzip, d.Compression != format.Zstd && bytes.HasPrefix(magic, MagicGzip):
		if p.gzip, err = newGzipReader(r, d.WantCheckpoint); err != nil {
			return err
		}
		p.Reader = p.gzip
		return nil
	case d.Compression == format.Zstd, bytes.HasPrefix(magic, MagicZstd), isSkippable(magic):
		return d.zstd(p, r)
	case bytes.HasPrefix(magic, MagicXZ):
		// github.com/ulikunitz/xz is better maintained, but has no limit for the dictionary:
		// a header of 12 bytes makes it allocate 4 GiB.
		p.Reader, err = xz.NewReader(r, uint32(d.Window))
		return err
	case isBzip2(magic):
		p.Reader = bzip2.NewReader(r)
		return nil
	case d.Compression == format.Maybe, d.Compression == format.Unnamed, qcow2.IsQCOW2(magic), isPartitioned(magic):
		p.Reader = r
		return nil
	}
	return fmt.Errorf("begins with % x: not gzip, xz, zstd, bzip2, qcow2 or a boot sector", magic[:min(len(magic), peeked)])
}

// chunkDecoders have windows of ChunkWindow. An image has thousands of chunks.
var chunkDecoders sync.Pool

func (d Options) zstd(p *Stream, r io.Reader) (err error) {
	if d.Window != ChunkWindow {
		// Concurrency 1 limits the memory.
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(d.Window)))
		if err != nil {
			return err
		}
		p.Reader = z
		p.closer = append([]func() error{func() error { z.Close(); return nil }}, p.closer...)
		return nil
	}
	z, _ := chunkDecoders.Get().(*zstd.Decoder)
	if z == nil {
		if z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(ChunkWindow)); err != nil {
			return err
		}
	}
	p.Reader = z
	p.closer = append([]func() error{func() error {
		err := z.Reset(nil)
		chunkDecoders.Put(z)
		return err
	}}, p.closer...)
	return z.Reset(r)
}
