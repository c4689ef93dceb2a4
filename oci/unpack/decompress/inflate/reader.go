// Package inflate decompresses DEFLATE (RFC 1951), about twice as fast as other Go
// libraries, and can resume in the middle of a stream.
//
// Decompression limits the speed of pulling a gzip image: a stream can only use one thread.
// Faster libraries (ISA-L, libdeflate, zlib-ng) are written in C; this package is memory-safe
// on untrusted input.
//
// It accepts the same streams as zlib.
package inflate

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	windowSize = 32 << 10 // maximum distance of a match
	maxMatch   = 258
	// limit is how far the output buffer is filled before it must be read.
	limit = windowSize + 128<<10
	// slack is the space after limit for literals and a match, in units of eight bytes.
	slack = 16 + maxMatch
)

// A corruptError says what is invalid in a stream, and at which byte.
type corruptError struct {
	Offset int64
	Reason string
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("deflate stream is corrupt at byte %d: %s", e.Offset, e.Reason)
}

// A Checkpoint is a place between two blocks at which decompression can resume: see
// [Resume].
type Checkpoint struct {
	// Offset in the compressed stream of the byte with the first bit of the next block.
	// Bit is the number of this bit, 0 to 7.
	Offset int64
	Bit    uint8
	// Window has up to 32 KiB of the decompressed stream before the checkpoint.
	Window []byte
}

// A Reader decompresses one stream. It does not read beyond the end of the stream.
type Reader struct {
	// Pause, if not nil, is called at the end of each block but the last, with the offset
	// of the next block in the compressed stream, and reports whether to pause. At a pause,
	// Read returns the data before it, and [Reader.Paused] is true until the next Read.
	Pause func(offset int64) bool

	source *bufio.Reader
	in     []byte // the buffer of source
	at     int    // bytes of in that are used, including those in bits
	taken  int64  // bytes of the stream before in

	bits  uint64 // the next bits of the stream, lowest first
	nbits uint   // number of valid bits; higher ones are unspecified

	// out[:to] is the end of the decompressed data, at least the window. out[from:to] has
	// not been read yet.
	out      [limit + slack]byte
	from, to int

	state  state
	final  bool // the current block is the last
	stored int  // bytes left in a stored block
	paused bool
	err    error

	// Tables of the current block: its own, or those of the fixed code.
	lit  *litTable
	dist *distTable
	own  struct {
		lit  litTable
		dist distTable
		code codeTable // of a dynamic block's header
	}
}

// A state is the next part of the stream.
type state int

const (
	atHeader state = iota
	inStored
	inHuffman
)

// NewReader returns a Reader of the stream that begins with the next byte of source.
func NewReader(source *bufio.Reader) *Reader { return &Reader{source: source} }

// Resume returns a Reader that starts at a checkpoint. The next byte of source is the byte at
// its Offset.
func Resume(source *bufio.Reader, c Checkpoint) (*Reader, error) {
	r := &Reader{}
	return r, r.Reset(source, c)
}

// Reset makes r start at a checkpoint, like [Resume]. It reuses the buffer and keeps Pause.
func (r *Reader) Reset(source *bufio.Reader, c Checkpoint) error {
	if c.Bit > 7 || len(c.Window) > windowSize {
		return fmt.Errorf("resume a deflate stream: the checkpoint has bit %d and a window of %d bytes", c.Bit, len(c.Window))
	}
	r.source, r.in, r.at, r.taken = source, nil, 0, c.Offset
	r.bits, r.nbits = 0, 0
	r.to = copy(r.out[:], c.Window)
	r.from = r.to
	r.state, r.final, r.stored, r.paused, r.err = atHeader, false, 0, false, nil
	if c.Bit == 0 {
		return nil
	}
	if err := r.need(uint(c.Bit)); err != nil {
		return err
	}
	r.drop(uint(c.Bit))
	return nil
}

// Paused reports whether the last Read ended at a pause.
func (r *Reader) Paused() bool { return r.paused && r.from == r.to }

// Checkpoint returns the place where the reader has paused.
func (r *Reader) Checkpoint() Checkpoint {
	offset, bit := r.position()
	return Checkpoint{Offset: offset, Bit: bit, Window: append([]byte(nil), r.out[max(0, r.to-windowSize):r.to]...)}
}

// position returns the place of the next bit in the stream.
func (r *Reader) position() (offset int64, bit uint8) {
	next := (r.taken+int64(r.at))*8 - int64(r.nbits)
	return next / 8, uint8(next % 8)
}

// Read implements [io.Reader]. The error is a [*corruptError] if the stream is not
// valid, and [io.ErrUnexpectedEOF] if its end is missing.
func (r *Reader) Read(p []byte) (int, error) {
	for r.from == r.to && len(p) > 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.paused = false
		r.makeRoom()
		if r.err = r.decode(); r.paused {
			break
		}
	}
	n := copy(p, r.out[r.from:r.to])
	r.from += n
	return n, nil
}

// makeRoom moves the window to the beginning of the buffer. All data has been read.
func (r *Reader) makeRoom() {
	if r.to < limit/2 {
		return
	}
	copy(r.out[:], r.out[r.to-windowSize:r.to])
	r.from, r.to = windowSize, windowSize
}

// decode decompresses until the buffer is full, or up to a pause or the end of the stream,
// for which it returns [io.EOF].
func (r *Reader) decode() (err error) {
	for err == nil && r.to < limit && !r.paused {
		switch r.state {
		case atHeader:
			err = r.header()
		case inStored:
			err = r.copyStored()
		case inHuffman:
			err = r.huffman()
		}
	}
	if errors.Is(err, io.EOF) {
		r.giveBack()
	}
	return err
}

// endBlock is called after the last bit of a block.
func (r *Reader) endBlock() error {
	r.state = atHeader
	if r.final {
		return io.EOF
	}
	if r.Pause != nil {
		offset, _ := r.position()
		r.paused = r.Pause(offset)
	}
	return nil
}

// giveBack leaves the source at the first unused byte.
func (r *Reader) giveBack() {
	r.at -= int(r.nbits / 8)
	r.nbits, r.bits = 0, 0
	r.source.Discard(r.at) // they are buffered
	r.taken += int64(r.at)
	r.in, r.at = nil, 0
}

// more makes sure that in has a byte after at, if the stream has one. It discards earlier
// bytes.
func (r *Reader) more() error {
	r.source.Discard(r.at) // they are buffered
	r.taken += int64(r.at)
	r.in, r.at = nil, 0
	_, err := r.source.Peek(1)
	r.in, _ = r.source.Peek(r.source.Buffered())
	if len(r.in) > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// refill adds bytes until there are 56 bits, or in is empty.
func (r *Reader) refill() {
	r.bits &= 1<<r.nbits - 1
	for r.nbits < 56 && r.at < len(r.in) {
		r.bits |= uint64(r.in[r.at]) << r.nbits
		r.at++
		r.nbits += 8
	}
}

// need makes sure that there are n bits; n is at most 48.
func (r *Reader) need(n uint) error {
	for r.nbits < n {
		if r.at == len(r.in) {
			if err := r.more(); err != nil {
				return err
			}
		}
		r.refill()
	}
	return nil
}

func (r *Reader) drop(n uint) {
	r.bits >>= n
	r.nbits -= n
}

// take returns the next n bits; n is at most 32. Call [Reader.need] before.
func (r *Reader) take(n uint) int {
	v := int(r.bits & (1<<n - 1))
	r.drop(n)
	return v
}

func (r *Reader) corrupt(format string, args ...any) error {
	offset, _ := r.position()
	return &corruptError{offset, fmt.Sprintf(format, args...)}
}

// header reads the header of a block (RFC 1951, 3.2.3).
func (r *Reader) header() error {
	if err := r.need(3); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch kind := r.take(2); kind {
	case 0:
		return r.storedHeader()
	case 1:
		r.lit, r.dist = fixed()
		r.state = inHuffman
		return nil
	case 2:
		r.state = inHuffman
		return r.dynamicHeader()
	}
	return r.corrupt("a block of the reserved kind 3")
}

// storedHeader reads the rest of the header of an uncompressed block.
func (r *Reader) storedHeader() error {
	r.drop(r.nbits % 8)
	if err := r.need(32); err != nil {
		return err
	}
	n, check := r.take(16), r.take(16)
	if n != ^check&0xffff {
		return r.corrupt("a stored block of %d bytes, whose check says %d", n, ^check&0xffff)
	}
	r.stored, r.state = n, inStored
	return nil
}

// copyStored copies the available part of a stored block.
func (r *Reader) copyStored() error {
	// The bytes in bits were read ahead.
	r.at -= int(r.nbits / 8)
	r.nbits, r.bits = 0, 0
	for r.stored > 0 && r.to < limit {
		if r.at == len(r.in) {
			if err := r.more(); err != nil {
				return err
			}
		}
		n := copy(r.out[r.to:min(limit, r.to+r.stored)], r.in[r.at:])
		r.at += n
		r.to += n
		r.stored -= n
	}
	if r.stored > 0 {
		return nil
	}
	return r.endBlock()
}
