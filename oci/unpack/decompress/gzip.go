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

// A gzipReader decompresses gzip, with any number of members, and can be set up
// again in the middle. That is why it is not gzip.Reader, which can not; it only
// reads the headers here.
type gzipReader struct {
	in      *bufio.Reader
	counted *readers.Counted // beneath in
	headers *gzip.Reader
	deflate *inflate.Reader
	name    string // in the header of the first member

	produced int64 // bytes of the whole stream that Read has returned
	crc      uint32
	size     uint32 // of the member so far, modulo 2^32

	// wanted is asked at the end of each deflate block whether to leave a mark there;
	// nil if marks are of no use.
	wantCheckpoint func(compressed int64) bool
	err            error // which ended it; io.EOF after a stream that was right
}

// A Checkpoint is a place in a gzip stream from which decompression can go on.
type Checkpoint struct {
	// Compressed offset of the byte with the first bit of the next block; Bit is its
	// number. Raw is the offset in the decompressed stream.
	Compressed int64  `json:"compressed"`
	Bit        uint8  `json:"bit"`
	Raw        int64  `json:"raw"`
	CRC        uint32 `json:"crc"`
	Size       uint32 `json:"size"`
	// Window is the last 32 KiB of the decompressed stream.
	Window []byte `json:"window"`
}

// newGzipReader reads the header of a stream.
func newGzipReader(r io.Reader, wanted func(compressed int64) bool) (*gzipReader, error) {
	g := &gzipReader{counted: readers.NewCounted(r, 0), wantCheckpoint: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	if err := g.header(); err != nil {
		return nil, err
	}
	return g, nil
}

// resumeGzip goes on at a mark; r stands at mark.Compressed.
func resumeGzip(r io.Reader, mark Checkpoint, wanted func(compressed int64) bool) (*gzipReader, error) {
	g := &gzipReader{counted: readers.NewCounted(r, mark.Compressed), wantCheckpoint: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	g.produced, g.crc, g.size = mark.Raw, mark.CRC, mark.Size
	var err error
	// Offsets in the whole stream, so that those of later marks are too.
	g.deflate, err = inflate.Resume(g.in, inflate.Checkpoint{Offset: mark.Compressed, Bit: mark.Bit, Window: mark.Window})
	if err != nil {
		return nil, err
	}
	g.deflate.Pause = wanted
	return g, nil
}

func (g *gzipReader) header() error {
	// gzip.Reader takes not a byte more than the header from a bufio.Reader. One is
	// enough: a stream can have a member in every 20 bytes.
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
	// Of offsets in the whole stream.
	return g.deflate.Reset(g.in, inflate.Checkpoint{Offset: g.counted.Count() - int64(g.in.Buffered())})
}

// Read returns no byte beyond a mark in the same call as those before it: ask
// reached in between.
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
			return n, nil // the next Read meets an error again
		}
	}
	return 0, g.err
}

// nextMember checks the member that ended; io.EOF if it was the last.
func (g *gzipReader) nextMember() error {
	if err := g.trailer(); err != nil {
		return err
	}
	if _, err := g.in.Peek(1); err != nil {
		return err
	}
	if err := g.header(); err != nil {
		return fmt.Errorf("after the end of a gzip stream: %w", err)
	}
	return nil
}

// checkpoint is the mark at which the last Read ended; nil if it ended elsewhere.
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
