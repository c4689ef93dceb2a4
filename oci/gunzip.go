package oci

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

// A gunzip decompresses gzip, with any number of members, and can be set up
// again in the middle. That is why it is not gzip.Reader, which can not; it only
// reads the headers here.
type gunzip struct {
	in      *bufio.Reader
	counted *countedReader // beneath in
	flate   io.ReadCloser
	name    string // in the header of the first member

	member   int64 // offset in the compressed stream at which flate began
	produced int64 // bytes of the whole stream that Read has returned
	base     int64 // produced when flate began
	ahead    int64 // bytes by which flate's offsets are too large: see bitPosition
	crc      uint32
	size     uint32 // of the member so far, modulo 2^32
	kept     []byte // decompressed, behind a mark

	// wanted is asked at the end of each deflate block whether to leave a mark there;
	// nil if marks are of no use.
	wanted func(compressed int64) bool
	mark   *gzipMark // wanted, and not reached by Read
	err    error     // which ended it; io.EOF after a stream that was right
}

// A gzipMark is a place in a gzip stream from which decompression can go on.
type gzipMark struct {
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

// newGunzip reads the header of a stream.
func newGunzip(r io.Reader, wanted func(compressed int64) bool) (*gunzip, error) {
	g := &gunzip{counted: &countedReader{r: r}, wanted: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	if err := g.header(); err != nil {
		return nil, err
	}
	return g, nil
}

// resumeGunzip goes on at a mark; r stands at mark.Compressed.
func resumeGunzip(r io.Reader, mark gzipMark, wanted func(compressed int64) bool) *gunzip {
	g := &gunzip{counted: &countedReader{r: r, n: mark.Compressed}, wanted: wanted}
	g.in = bufio.NewReaderSize(g.counted, readBuffer)
	g.produced, g.crc, g.size = mark.Raw, mark.CRC, mark.Size
	// Offsets in the whole stream, so that those of later marks are too.
	opts := []flate.ReaderOpt{flate.WithResumeFrom(flate.InflateCheckpoint{
		UncompressedOffset: mark.Raw, CompressedOffset: mark.Compressed, BitOffset: mark.Bit, Window: mark.Window,
	})}
	if wanted != nil {
		opts = append(opts, flate.WithEobCallback(g.endOfBlock))
	}
	g.flate = flate.NewReaderOpts(g.in, opts...)
	return g
}

func (g *gunzip) header() error {
	// gzip.Reader takes not a byte more than the header from a bufio.Reader.
	h, err := gzip.NewReader(g.in)
	if err != nil {
		return err
	}
	if g.produced == 0 && g.flate == nil {
		g.name = h.Name
	}
	g.member = g.counted.n - int64(g.in.Buffered())
	g.base, g.ahead, g.crc, g.size = g.produced, 0, 0, 0
	var opts []flate.ReaderOpt
	if g.wanted != nil {
		opts = append(opts, flate.WithEobCallback(g.endOfBlock))
	}
	g.flate = flate.NewReaderOpts(g.in, opts...)
	return nil
}

func (g *gunzip) endOfBlock(c flate.InflateCheckpoint) {
	at := g.bitPosition(c)
	if g.mark != nil || c.Final || !g.wanted(at/8) {
		return
	}
	g.mark = &gzipMark{
		Compressed: at / 8,
		Bit:        uint8(at % 8),
		Raw:        g.base + c.UncompressedOffset,
		Window:     append([]byte(nil), c.Window...),
	}
}

// bitPosition is where the next block begins, in bits of the compressed stream.
//
// It corrects what the checkpoint says: as of compress 1.20.3 the offset runs
// ahead by the whole bytes that were buffered before each stored block
// (flate.dataBlock counts them a second time). After a stored block no bit is
// buffered, so a checkpoint beyond what was read shows by how much.
func (g *gunzip) bitPosition(c flate.InflateCheckpoint) int64 {
	read := g.counted.n - int64(g.in.Buffered())
	buffered := (read-g.member+g.ahead)*8 - (c.CompressedOffset*8 + int64(c.BitOffset))
	if buffered < 0 {
		g.ahead -= buffered / 8
		buffered = 0
	}
	return read*8 - buffered
}

// Read returns no byte beyond a mark in the same call as those before it: ask
// reached in between.
func (g *gunzip) Read(p []byte) (int, error) {
	for g.err == nil {
		n, err := g.read(p)
		if n > 0 || err == nil {
			return g.deliver(p, n), nil // the next Read meets err again
		}
		if !errors.Is(err, io.EOF) {
			g.err = err
		} else {
			g.err = g.nextMember()
		}
	}
	return 0, g.err
}

// deliver counts n bytes in p, and keeps those behind a mark for later.
func (g *gunzip) deliver(p []byte, n int) int {
	if g.mark != nil && g.produced+int64(n) > g.mark.Raw {
		before := int(g.mark.Raw - g.produced)
		g.kept = append(g.kept, p[before:n]...)
		n = before
	}
	g.produced += int64(n)
	g.crc = crc32.Update(g.crc, crc32.IEEETable, p[:n])
	g.size += uint32(n)
	return n
}

// nextMember checks the member that ended; io.EOF if it was the last.
func (g *gunzip) nextMember() error {
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

func (g *gunzip) read(p []byte) (int, error) {
	if len(g.kept) > 0 {
		n := copy(p, g.kept)
		g.kept = append(g.kept[:0], g.kept[n:]...)
		return n, nil
	}
	return g.flate.Read(p)
}

// reached is the mark at which the last Read ended; nil if it ended elsewhere.
func (g *gunzip) reached() *gzipMark {
	m := g.mark
	if m == nil || m.Raw != g.produced {
		return nil
	}
	g.mark = nil
	m.CRC, m.Size = g.crc, g.size
	return m
}

func (g *gunzip) trailer() error {
	var t [8]byte
	if _, err := io.ReadFull(g.in, t[:]); err != nil {
		return noEOF(err)
	}
	if binary.LittleEndian.Uint32(t[:4]) != g.crc || binary.LittleEndian.Uint32(t[4:]) != g.size {
		return gzip.ErrChecksum
	}
	return nil
}
