package decompress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// Apple's compression library has its own LZ4 framing (documentation of COMPRESSION_LZ4):
// blocks of
//
//	"bv41", raw size, packed size, packed bytes
//	"bv4-", raw size, raw bytes
//
// with little-endian 32-bit sizes, and "bv4$" at the end. A packed block may refer to the
// content before it, as far back as LZ4 allows.
const (
	appleBlock   = 4 << 20 // maximum size; Apple writes 64 KiB
	appleHistory = 64 << 10
)

// An appleLZ4 decompresses one stream.
type appleLZ4 struct {
	r       io.Reader
	packed  []byte
	history []byte // the last appleHistory bytes before raw
	raw     []byte
	left    []byte // of raw, not yet read
	err     error
}

func newAppleLZ4(r io.Reader) *appleLZ4 { return &appleLZ4{r: r} }

func (a *appleLZ4) Read(p []byte) (int, error) {
	for len(a.left) == 0 && a.err == nil {
		a.err = a.next()
	}
	if len(a.left) == 0 {
		return 0, a.err
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// next reads a block. It returns io.EOF after the last.
func (a *appleLZ4) next() error {
	var magic [4]byte
	if _, err := io.ReadFull(a.r, magic[:]); err != nil {
		return noEOF(err)
	}
	a.remember()
	switch string(magic[:]) {
	case "bv4$":
		// No bytes may follow: they would be hidden content.
		if n, err := a.r.Read(magic[:1]); n > 0 || !errors.Is(err, io.EOF) {
			return errors.Join(errors.New("LZ4: bytes after the end"), err)
		}
		return io.EOF
	case "bv4-":
		size, err := a.size()
		if err != nil {
			return err
		}
		a.raw = resize(a.raw, size)
		_, err = io.ReadFull(a.r, a.raw)
		a.left = a.raw
		return noEOF(err)
	case "bv41":
		return a.unpack()
	}
	return fmt.Errorf("LZ4: a block of type %q", magic)
}

func (a *appleLZ4) unpack() error {
	size, err := a.size()
	if err != nil {
		return err
	}
	packed, err := a.size()
	if err != nil {
		return err
	}
	a.packed = resize(a.packed, packed)
	if _, err := io.ReadFull(a.r, a.packed); err != nil {
		return noEOF(err)
	}
	a.raw = resize(a.raw, size)
	n, err := lz4.UncompressBlockWithDict(a.packed, a.raw, a.history)
	if err != nil {
		return fmt.Errorf("LZ4: %w", err)
	}
	if n != size {
		return fmt.Errorf("LZ4: a block of %d bytes, its header says %d", n, size)
	}
	a.left = a.raw
	return nil
}

// remember keeps the last bytes that were read.
func (a *appleLZ4) remember() {
	a.history = append(a.history, a.raw...)
	if over := len(a.history) - appleHistory; over > 0 {
		a.history = append(a.history[:0], a.history[over:]...)
	}
	a.raw = a.raw[:0]
}

func (a *appleLZ4) size() (int, error) {
	var b [4]byte
	if _, err := io.ReadFull(a.r, b[:]); err != nil {
		return 0, noEOF(err)
	}
	n := binary.LittleEndian.Uint32(b[:])
	if n > appleBlock {
		return 0, fmt.Errorf("LZ4: a block of %d bytes, at most %d are accepted", n, appleBlock)
	}
	return int(n), nil
}

func resize(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// noEOF turns io.EOF in the middle of a stream into io.ErrUnexpectedEOF.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
