package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Bits of the entries of L1 and L2 tables.
const (
	offsetMask     = 0x00fffffffffffe00
	l2Compressed   = 1 << 62
	l2Zero         = 1 << 0 // without extended L2 entries
	sector         = 512
	subclusters    = 32
	zstdWindowMax  = 8 << 20
	zstdMemoryMax  = 32 << 20
	compressedUnit = 8 // a compressed size has ClusterBits-8 bits
)

// A Content reads the disk that a guest would see. It opens no other file: what is in the
// backing file is read from the reader that [NewContent] got. It neither trusts the tables
// of the file nor reads more than one cluster at a time.
type Content struct {
	file        io.ReaderAt
	backing     io.ReaderAt
	header      *Header
	l1Offset    int64
	l1Size      int64
	compression uint8
}

// NewContent returns the content of the file. backing is the content of the backing file; nil
// means zeros. The error says that the header must not be used, or that the content cannot
// be read: it is encrypted or in another file.
func NewContent(file, backing io.ReaderAt) (*Content, error) {
	h, f, err := readChecked(file)
	if err != nil {
		return nil, err
	}
	if err := h.readNames(file, f); err != nil {
		return nil, err
	}
	if h.Encryption != EncryptionNone || h.ExternalData() {
		return nil, errors.New("qcow2: its content is encrypted or in another file")
	}
	return &Content{
		file: file, backing: backing, header: h,
		l1Offset: int64(f.L1TableOffset), l1Size: int64(f.L1Size), compression: f.CompressionType,
	}, nil
}

// Size is the virtual size in bytes.
func (c *Content) Size() int64 { return c.header.VirtualSize }

// ReadAt implements [io.ReaderAt] for the disk of the guest.
func (c *Content) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow2: read at offset %d", off)
	}
	for n < len(p) {
		at := off + int64(n)
		if at >= c.Size() {
			return n, io.EOF
		}
		part := p[n:]
		part = part[:min(int64(len(part)), c.Size()-at, c.unit()-at%c.unit())]
		if err := c.read(part, at); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// unit is the number of bytes that one entry describes: a cluster or a subcluster.
func (c *Content) unit() int64 {
	if c.extended() {
		return c.header.ClusterSize() / subclusters
	}
	return c.header.ClusterSize()
}

func (c *Content) extended() bool { return c.header.Incompatible&incompatibleExtendedL2 != 0 }

// read reads a part of one unit.
func (c *Content) read(p []byte, at int64) error {
	entry, allocated, zero, err := c.lookUp(at)
	if err != nil {
		return err
	}
	within := at % c.header.ClusterSize()
	switch {
	case entry&l2Compressed != 0:
		return c.readCompressed(p, entry, within)
	case zero:
		clear(p)
		return nil
	case !allocated:
		return readPadded(c.backing, p, at)
	}
	return readPadded(c.file, p, int64(entry&offsetMask)+within)
}

// lookUp returns the L2 entry for an offset, and whether its unit is allocated in the file or
// reads as zeros.
func (c *Content) lookUp(at int64) (entry uint64, allocated, zero bool, err error) {
	size := int64(8)
	if c.extended() {
		size = 16
	}
	cluster := c.header.ClusterSize()
	number, perTable := at/cluster, cluster/size
	if number/perTable >= c.l1Size {
		return 0, false, false, errors.New("qcow2: its L1 table is too short")
	}
	var buf [16]byte
	if err := readPadded(c.file, buf[:8], c.l1Offset+number/perTable*8); err != nil {
		return 0, false, false, err
	}
	table := int64(binary.BigEndian.Uint64(buf[:]) & offsetMask)
	if table == 0 {
		return 0, false, false, nil
	}
	if err := readPadded(c.file, buf[:size], table+number%perTable*size); err != nil {
		return 0, false, false, err
	}
	entry = binary.BigEndian.Uint64(buf[:])
	if !c.extended() {
		return entry, entry&offsetMask != 0, entry&l2Zero != 0 && c.header.Version > 2, nil
	}
	bit := uint(at % cluster / (cluster / subclusters))
	bitmap := binary.BigEndian.Uint64(buf[8:])
	return entry, bitmap>>bit&1 != 0, bitmap>>(subclusters+bit)&1 != 0, nil
}

// readCompressed reads from a compressed cluster.
func (c *Content) readCompressed(p []byte, entry uint64, within int64) error {
	// docs/interop/qcow2.txt, "Compressed Clusters Descriptor".
	offsetBits := 62 - (c.header.ClusterBits - compressedUnit)
	offset := int64(entry & (1<<offsetBits - 1))
	sectors := int64(entry &^ (l2Compressed | 1<<63) >> offsetBits)
	packed := make([]byte, (sectors+1)*sector-offset%sector)
	n, err := c.file.ReadAt(packed, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("qcow2: read a compressed cluster: %w", err)
	}
	var unpacked io.Reader = flate.NewReader(bytes.NewReader(packed[:n]))
	if c.compression == compressionZstd {
		decoder, err := zstd.NewReader(bytes.NewReader(packed[:n]), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(zstdWindowMax), zstd.WithDecoderMaxMemory(zstdMemoryMax))
		if err != nil {
			return fmt.Errorf("qcow2: read a compressed cluster: %w", err)
		}
		defer decoder.Close()
		unpacked = decoder
	}
	if _, err := io.CopyN(io.Discard, unpacked, within); err != nil {
		return fmt.Errorf("qcow2: read a compressed cluster: %w", err)
	}
	if _, err := io.ReadFull(unpacked, p); err != nil {
		return fmt.Errorf("qcow2: read a compressed cluster: %w", err)
	}
	return nil
}

// readPadded fills p with zeros behind the end of r, as QEMU does; nil has no bytes.
func readPadded(r io.ReaderAt, p []byte, off int64) error {
	if r == nil {
		clear(p)
		return nil
	}
	n, err := r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("qcow2: %w", err)
	}
	clear(p[n:])
	return nil
}
