package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/gzip"

	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/unpack/decompress/inflate"
)

// A gzipReader decompresses gzip with any number of members. Unlike gzip.Reader, which only
// reads the headers here, it can resume at a checkpoint.
type gzipReader struct {
	in      *bufio.Reader
	counted *readers.Counted // below in
	headers *gzip.Reader
	deflate *inflate.Reader
	name    string // in the header of the first member

	produced int64 // bytes of the whole stream that Read has returned
	crc      uint32
	size     uint32 // of the member so far, modulo 2^32

	// wantCheckpoint is called at the end of each deflate block; nil means no checkpoints.
	wantCheckpoint func(compressed int64) bool
	err            error // io.EOF after a valid stream
}

// A Checkpoint is a place in a gzip stream at which decompression can resume.
type Checkpoint struct {
	// Compressed is the offset of the byte with the first bit of the next block, and Bit
	// the number of this bit. Raw is the offset in the decompressed stream.
	Compressed int64  `json:"compressed"`
	Bit        uint8  `json:"bit"`
	Raw        int64  `json:"raw"`
	CRC        uint32 `json:"crc"`
	Size       uint32 `json:"size"`
	// Window has the last 32 KiB of the decompressed stream.
	Window []byte `json:"window"`
}

// newGzipReader starts at the beginning of a stream.
func newGzipReader(r io.Reader, wanted func(compressed int64) bool) (*gzipReader, error) {
	g := &gzipReader{counted: readers.NewCounted(r, 0), wantCheckpoint: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	if err := g.header(); err != nil {
		return nil, err
	}
	return g, nil
}

// resumeGzip resumes at a checkpoint; r is at offset from.Compressed.
func resumeGzip(r io.Reader, from Checkpoint, wanted func(compressed int64) bool) (*gzipReader, error) {
	g := &gzipReader{counted: readers.NewCounted(r, from.Compressed), wantCheckpoint: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	g.produced, g.crc, g.size = from.Raw, from.CRC, from.Size
	var err error
	// Offsets count from the beginning of the whole stream.
	g.deflate, err = inflate.Resume(g.in, inflate.Checkpoint{Offset: from.Compressed, Bit: from.Bit, Window: from.Window})
	if err != nil {
		return nil, err
	}
	g.deflate.Pause = wanted
	return g, nil
}

func (g *gzipReader) header() error {
	// gzip.Reader reads exactly the header from a bufio.Reader. It is reused, because a
	// stream can have a member every 20 bytes.
	if g.headers == nil {
		g.headers = new(gzip.Reader)
	}
	if err := g.headers.Reset(g.in); err != nil {
		return err
	}
	if g.produced == 0 && g.deflate == nil {
		g.name = g.headers.Name
	}
	g.crc, g.size = 0, 0
	if g.deflate == nil {
		g.deflate = inflate.NewReader(g.in)
		g.deflate.Pause = g.wantCheckpoint
	}
	return g.deflate.Reset(g.in, inflate.Checkpoint{Offset: g.counted.Count() - int64(g.in.Buffered())})
}

// Read stops at checkpoints: call checkpoint after each Read.
func (g *gzipReader) Read(p []byte) (int, error) {
	for g.err == nil {
		n, err := g.deflate.Read(p)
		g.produced += int64(n)
		g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
		g.size += uint32(n)
		switch {
		case errors.Is(err, io.EOF):
			g.err = g.nextMember()
		case err != nil:
			g.err = err
		}
		if n > 0 || g.deflate.Paused() {
			return n, nil // the next Read returns the error
		}
	}
	return 0, g.err
}

// nextMember checks the end of a member and starts the next. It returns io.EOF after the
// last.
func (g *gzipReader) nextMember() error {
	if err := g.trailer(); err != nil {
		return err
	}
	next, err := g.in.Peek(1)
	if err != nil {
		return err
	}
	if next[0] == 0 {
		return g.padding()
	}
	if err := g.header(); err != nil {
		return fmt.Errorf("after the end of a gzip stream: %w", err)
	}
	return nil
}

// padding reads zeros up to the end of the stream, as gzip(1) does: tapes and other block
// devices leave them.
func (g *gzipReader) padding() error {
	for {
		b, err := g.in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return errors.New("after the end of a gzip stream: zeros, and then something else")
		}
	}
}

// checkpoint returns the place at which the last Read stopped, or nil.
func (g *gzipReader) checkpoint() *Checkpoint {
	if g.err != nil || !g.deflate.Paused() {
		return nil
	}
	c := g.deflate.Checkpoint()
	return &Checkpoint{Compressed: c.Offset, Bit: c.Bit, Raw: g.produced, CRC: g.crc, Size: g.size, Window: c.Window}
}

func (g *gzipReader) trailer() error {
	var t [8]byte
	if _, err := io.ReadFull(g.in, t[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(t[:4]) != g.crc || binary.LittleEndian.Uint32(t[4:]) != g.size {
		return gzip.ErrChecksum
	}
	return nil
}
