// Package qcow2 checks the header of an untrusted QCOW2 file before any other program opens
// the file, and rewrites the name of its backing file.
//
// It never opens another file. It reads the header's cluster and the snapshot table. (Libraries
// that follow backing files, such as go-qcow2reader, open any path in the header, which must
// be checked first.)
//
// The sources are QEMU's docs/interop/qcow2.txt and, where that is unclear, block/qcow2.c
// (qcow2_do_open). QEMU 7.2 opens all files that this package accepts, and interprets them in
// the same way; this package is stricter. Bitmaps are an exception: QEMU checks more of them
// (see [DropBitmaps]).
package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrNotQCOW2: the file does not begin with the QCOW2 magic bytes, so it may have another
// format. Other errors of this package mean that the file must not be used.
var ErrNotQCOW2 = errors.New("not a qcow2 file")

// Magic is the first four bytes of QCOW2 files, and of QCOW1 files, which are refused.
const Magic = "QFI\xfb"

// Incompatible feature bits.
const (
	incompatibleDirty        = 1 << 0 // refcounts may be wrong
	IncompatibleCorrupt      = 1 << 1 // metadata is corrupt; QEMU opens it read-only
	incompatibleExternalData = 1 << 2 // guest data is in another file
	incompatibleCompression  = 1 << 3 // clusters are not compressed with zlib
	incompatibleExtendedL2   = 1 << 4 // L2 entries have subclusters

	incompatibleKnown = 1<<5 - 1
)

// Autoclear feature bits.
const (
	// autoclearBitmaps: the bitmaps extension is up to date.
	autoclearBitmaps = 1 << 0
	// autoclearRawExternalData marks the external data file as a plain raw disk.
	autoclearRawExternalData = 1 << 1
)

// Compression types.
const (
	compressionZlib uint8 = 0
	compressionZstd uint8 = 1
)

// Encryption methods.
const (
	EncryptionNone uint32 = 0
	encryptionAES  uint32 = 1 // legacy; QEMU no longer supports it for guests
	encryptionLUKS uint32 = 2
)

// Extension types.
const (
	extensionEnd           uint32 = 0
	extensionBackingFormat uint32 = 0xe2792aca
	extensionDataFile      uint32 = 0x44415441
	extensionCrypto        uint32 = 0x0537be77
	extensionBitmaps       uint32 = 0x23852875
)

// QEMU's limits.
const (
	headerLengthV2   = 72
	headerLengthV3   = 104
	minClusterBits   = 9
	maxClusterBits   = 21
	maxRefcountOrder = 6
	maxL1Bytes       = 32 << 20
	maxRefcountBytes = 8 << 20
	maxSnapshots     = 65536
	maxBackingName   = 1023
	maxBackingFormat = 15
	maxBitmaps       = 65535
	// A subcluster is 1/32 of a cluster, and at least one sector.
	minClusterBitsExtendedL2 = minClusterBits + 5
	// maxOffset is the maximum file size (BDRV_MAX_LENGTH).
	maxOffset = math.MaxInt64 &^ (1<<30 - 1)
)

// Sizes of the snapshot table, in bytes: the fixed part of an entry, and limits of the
// variable part and the whole table.
const (
	snapshotEntry       = 40
	maxSnapshotExtra    = 1024
	maxSnapshotsInBytes = 1024 * maxSnapshots
)

// maxExtensions limits the work for one header. QEMU writes three or four.
const maxExtensions = 256

// A Header is a valid QCOW2 header: its fields cause no overflows, loops, or seeks outside of
// the header's cluster.
type Header struct {
	Version     uint32 // 2 or 3
	ClusterBits uint32 // 9 to 21
	// VirtualSize is the size of the guest's disk, in bytes; never negative.
	VirtualSize int64
	Encryption  uint32
	Snapshots   uint32

	// BackingFile is the name in the header: a path, or one of QEMU's URLs ("nbd:…",
	// "json:{…}"). Empty if there is no backing file.
	BackingFile string
	// BackingFormat is the format of the backing file in the header, such as "qcow2". If it
	// is empty, QEMU would probe the file.
	BackingFormat string
	// DataFile is the name of the external data file. It is independent of the feature bit:
	// use [Header.ExternalData].
	DataFile string

	Incompatible uint64
	Compatible   uint64
	Autoclear    uint64

	length     uint32 // of the fixed part, in bytes
	extensions []extension
}

type extension struct {
	kind  uint32
	bytes []byte
}

// ClusterSize in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// ExternalData reports whether any part of the header refers to an external data file.
func (h *Header) ExternalData() bool {
	return h.Incompatible&incompatibleExternalData != 0 ||
		h.Autoclear&autoclearRawExternalData != 0 ||
		h.DataFile != ""
}

// fixed is the header's fixed part up to header_length, as it lies in the file
// (big endian), and the one field that may follow. Version 2 ends before
// Incompatible.
type fixed struct {
	Magic                 [4]byte
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	Snapshots             uint32
	SnapshotsOffset       uint64

	Incompatible  uint64
	Compatible    uint64
	Autoclear     uint64
	RefcountOrder uint32
	HeaderLength  uint32

	// In headers longer than [headerLengthV3] alone.
	CompressionType uint8
}

// IsQCOW2 reports whether a file that begins with prefix claims to be QCOW2.
func IsQCOW2(prefix []byte) bool { return bytes.HasPrefix(prefix, []byte(Magic)) }

// ReadHeader reads and checks the header of the file r, of which it reads at
// most the first cluster (2 MiB), and 40 bytes of each snapshot. The error is
// [ErrNotQCOW2] if the magic bytes are missing.
func ReadHeader(r io.ReaderAt) (*Header, error) {
	h, f, err := readChecked(r)
	if err != nil {
		return nil, err
	}
	if err := h.readNames(r, f); err != nil {
		return nil, err
	}
	return h, f.checkSnapshots(r)
}

// ReadPrefix is [ReadHeader] for a file of which there are only the first bytes. If
// they are not the whole first cluster, extensions and backing file are left out;
// the table of snapshots is not looked at. What it accepts, ReadHeader may refuse.
func ReadPrefix(prefix []byte) (*Header, error) {
	r := bytes.NewReader(prefix)
	h, f, err := readChecked(r)
	if err != nil || int64(len(prefix)) < h.ClusterSize() {
		return h, err
	}
	return h, h.readNames(r, f)
}

// What a file may have beside the content of its disk, in bytes. Tables take at most
// a 32nd of the disk (clusters of 512 bytes, refcounts of 64 bits); the rest is for
// bitmaps and clusters that are lost or not used any more.
const (
	metadataShare = 8        // divisor of the virtual size
	metadataSlack = 64 << 20 // L1 and refcount table have at most 40 MiB
	// countedSnapshots are those that the size of a file may be explained by.
	countedSnapshots = 16
)

// MaxFileSize is a size, in bytes, which a file with this header has no reason to
// exceed: the virtual size, an eighth of it and 64 MiB for tables and what they have
// lost, and as much again for each of at most 16 snapshots. The format itself has no
// such bound.
func (h *Header) MaxFileSize() int64 {
	disks := 1 + int64(min(h.Snapshots, countedSnapshots))
	if h.VirtualSize > math.MaxInt64/(2*disks)-metadataSlack {
		return math.MaxInt64
	}
	return disks * (h.VirtualSize + h.VirtualSize/metadataShare + metadataSlack)
}

func readChecked(r io.ReaderAt) (*Header, *fixed, error) {
	f, err := readFixed(r)
	if err != nil {
		return nil, nil, err
	}
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	return &Header{
		Version:      f.Version,
		ClusterBits:  f.ClusterBits,
		VirtualSize:  int64(f.Size),
		Encryption:   f.CryptMethod,
		Snapshots:    f.Snapshots,
		Incompatible: f.Incompatible,
		Compatible:   f.Compatible,
		Autoclear:    f.Autoclear,
		length:       f.HeaderLength,
	}, f, nil
}

// readNames reads what follows the fixed part in the first cluster.
func (h *Header) readNames(r io.ReaderAt, f *fixed) error {
	if err := h.readExtensions(r, f); err != nil {
		return err
	}
	return h.readBackingFile(r, f)
}

func readFixed(r io.ReaderAt) (*fixed, error) {
	buf := make([]byte, headerLengthV3+1)
	n, err := r.ReadAt(buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading qcow2 header: %w", err)
	}
	if !IsQCOW2(buf[:n]) {
		return nil, ErrNotQCOW2
	}
	if n < headerLengthV2 {
		return nil, fmt.Errorf("qcow2 header: file ends after %d bytes", n)
	}
	var f fixed
	if _, err := binary.Decode(buf, binary.BigEndian, &f); err != nil {
		return nil, fmt.Errorf("qcow2 header: %w", err)
	}
	switch {
	case f.Version == 2:
		// Version 2 has no such fields; what follows are extensions.
		f.Incompatible, f.Compatible, f.Autoclear = 0, 0, 0
		f.RefcountOrder, f.HeaderLength, f.CompressionType = 4, headerLengthV2, compressionZlib
	case f.Version == 3 && n < headerLengthV3:
		return nil, fmt.Errorf("qcow2 header: file ends after %d bytes", n)
	case f.Version != 3:
		return nil, fmt.Errorf("qcow2 header: version %d, want 2 or 3", f.Version)
	case f.HeaderLength == headerLengthV3: // an extension begins there
		f.CompressionType = compressionZlib
	}
	return &f, nil
}

// check refuses what QEMU would refuse, or would do only by reading far away.
func (f *fixed) check() error {
	if f.ClusterBits < minClusterBits || f.ClusterBits > maxClusterBits {
		return fmt.Errorf("qcow2 header: cluster bits %d, want %d to %d", f.ClusterBits, minClusterBits, maxClusterBits)
	}
	cluster := uint64(1) << f.ClusterBits
	switch {
	case f.Version == 3 && (f.HeaderLength < headerLengthV3 || f.HeaderLength%8 != 0 || uint64(f.HeaderLength) > cluster):
		return fmt.Errorf("qcow2 header: header length %d does not fit clusters of %d bytes", f.HeaderLength, cluster)
	case f.Incompatible&^incompatibleKnown != 0:
		return fmt.Errorf("qcow2 header: unknown incompatible features %#x", f.Incompatible&^incompatibleKnown)
	case f.CompressionType > compressionZstd:
		return fmt.Errorf("qcow2 header: unknown compression type %d", f.CompressionType)
	case (f.CompressionType != compressionZlib) != (f.Incompatible&incompatibleCompression != 0):
		return fmt.Errorf("qcow2 header: compression type %d, but incompatible features %#x", f.CompressionType, f.Incompatible)
	case f.Incompatible&incompatibleExtendedL2 != 0 && f.ClusterBits < minClusterBitsExtendedL2:
		return fmt.Errorf("qcow2 header: extended L2 entries with clusters of %d bytes, want at least %d", cluster, 1<<minClusterBitsExtendedL2)
	case f.RefcountOrder > maxRefcountOrder:
		return fmt.Errorf("qcow2 header: refcount order %d, want at most %d", f.RefcountOrder, maxRefcountOrder)
	case f.CryptMethod > encryptionLUKS:
		return fmt.Errorf("qcow2 header: unknown encryption method %d", f.CryptMethod)
	case f.Snapshots > maxSnapshots:
		return fmt.Errorf("qcow2 header: %d snapshots, want at most %d", f.Snapshots, maxSnapshots)
	case f.RefcountTableClusters == 0:
		return errors.New("qcow2 header: no refcount table")
	case uint64(f.RefcountTableClusters)*cluster > maxRefcountBytes:
		return fmt.Errorf("qcow2 header: refcount table of %d clusters is too large", f.RefcountTableClusters)
	case f.Size > math.MaxInt64-cluster:
		return fmt.Errorf("qcow2 header: virtual size %d is too large", f.Size)
	}
	return f.checkTables(cluster)
}

func (f *fixed) checkTables(cluster uint64) error {
	for _, table := range []struct {
		name   string
		offset uint64
		size   uint64
	}{
		{"L1 table", f.L1TableOffset, uint64(f.L1Size) * 8},
		{"refcount table", f.RefcountTableOffset, uint64(f.RefcountTableClusters) * cluster},
		{"snapshot table", f.SnapshotsOffset, uint64(f.Snapshots) * snapshotEntry},
	} {
		// Also of a table without entries.
		if table.offset%cluster != 0 || table.offset > maxOffset-table.size {
			return fmt.Errorf("qcow2 header: %s at offset %d", table.name, table.offset)
		}
	}
	if uint64(f.L1Size)*8 > maxL1Bytes {
		return fmt.Errorf("qcow2 header: L1 table of %d entries is too large", f.L1Size)
	}
	// An L2 table fills a cluster; its entries have 16 bytes with extended L2.
	entry := uint64(8)
	if f.Incompatible&incompatibleExtendedL2 != 0 {
		entry = 16
	}
	perL1 := cluster / entry * cluster
	need := f.Size / perL1
	if f.Size%perL1 != 0 {
		need++
	}
	if need > uint64(f.L1Size) {
		return fmt.Errorf("qcow2 header: L1 table of %d entries is too small for a disk of %d bytes", f.L1Size, f.Size)
	}
	return nil
}

// checkSnapshots checks the snapshot table, in which entries have variable sizes. QEMU reads it
// when it opens a disk, and reads zeroes beyond the end of the file.
func (f *fixed) checkSnapshots(r io.ReaderAt) error {
	offset := f.SnapshotsOffset
	for i := range f.Snapshots {
		var entry [snapshotEntry]byte
		offset = (offset + 7) &^ 7
		if _, err := r.ReadAt(entry[:], int64(offset)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the snapshots of the qcow2 file: %w", err)
		}
		id, name := binary.BigEndian.Uint16(entry[12:]), binary.BigEndian.Uint16(entry[14:])
		extra := binary.BigEndian.Uint32(entry[36:])
		if extra > maxSnapshotExtra {
			return fmt.Errorf("qcow2 header: snapshot %d has %d bytes of extra data, at most %d are known", i, extra, maxSnapshotExtra)
		}
		offset += snapshotEntry + uint64(extra) + uint64(id) + uint64(name)
		if offset-f.SnapshotsOffset > maxSnapshotsInBytes || offset > maxOffset {
			return fmt.Errorf("qcow2 header: snapshot table of %d entries is too large", f.Snapshots)
		}
	}
	return nil
}

// readExtensions reads the extensions up to the name of the backing file or the end of the
// cluster, like QEMU's qcow2_read_extensions.
func (h *Header) readExtensions(r io.ReaderAt, f *fixed) error {
	end := uint64(h.ClusterSize())
	if f.BackingFileOffset > end {
		return fmt.Errorf("qcow2 header: backing file name at offset %d, outside of the first cluster", f.BackingFileOffset)
	}
	if f.BackingFileOffset != 0 {
		if f.BackingFileOffset < uint64(f.HeaderLength) {
			return fmt.Errorf("qcow2 header: backing file name at offset %d, inside of the header", f.BackingFileOffset)
		}
		end = f.BackingFileOffset
	}
	offset := uint64(f.HeaderLength)
	for len(h.extensions) <= maxExtensions {
		if offset >= end {
			return nil
		}
		if offset+8 > end {
			return fmt.Errorf("qcow2 header: no room for an extension at offset %d", offset)
		}
		var head [8]byte
		if n, err := r.ReadAt(head[:], int64(offset)); n < len(head) {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("qcow2 header: file ends among the header extensions")
			}
			return fmt.Errorf("reading qcow2 header extension: %w", err)
		}
		kind, size := binary.BigEndian.Uint32(head[:4]), uint64(binary.BigEndian.Uint32(head[4:]))
		offset += 8
		if size > end-offset { // also of the end mark
			return fmt.Errorf("qcow2 header: extension %#x of %d bytes does not fit", kind, size)
		}
		if kind == extensionEnd {
			return nil
		}
		body := make([]byte, size)
		if n, err := r.ReadAt(body, int64(offset)); n < len(body) {
			return fmt.Errorf("reading qcow2 header extension %#x: %w", kind, err)
		}
		if err := h.addExtension(kind, body); err != nil {
			return err
		}
		offset += (size + 7) &^ 7
	}
	return fmt.Errorf("qcow2 header: more than %d extensions", maxExtensions)
}

func (h *Header) addExtension(kind uint32, body []byte) error {
	for _, e := range h.extensions {
		// With two of the same kind, QEMU uses the last, other programs the first.
		if e.kind == kind {
			return fmt.Errorf("qcow2 header: extension %#x appears twice", kind)
		}
	}
	h.extensions = append(h.extensions, extension{kind, body})
	switch kind {
	case extensionBackingFormat:
		if len(body) > maxBackingFormat {
			return fmt.Errorf("qcow2 header: format of the backing file of %d bytes is too long", len(body))
		}
		h.BackingFormat = string(body)
	case extensionCrypto:
		if h.Encryption != encryptionLUKS || len(body) != 16 || binary.BigEndian.Uint64(body)%uint64(h.ClusterSize()) != 0 {
			return errors.New("qcow2 header: an encryption header that is none of LUKS")
		}
		return nil
	case extensionBitmaps:
		return h.checkBitmaps(body)
	case extensionDataFile:
		h.DataFile = string(body)
	default:
		return nil
	}
	return checkName("header extension", string(body))
}

// checkBitmaps checks the bitmaps extension, which QEMU ignores if it is not up to date.
func (h *Header) checkBitmaps(body []byte) error {
	if len(body) != 24 {
		return fmt.Errorf("qcow2 header: bitmaps extension of %d bytes, want 24", len(body))
	}
	be := binary.BigEndian
	count, reserved, size, offset := be.Uint32(body), be.Uint32(body[4:]), be.Uint64(body[8:]), be.Uint64(body[16:])
	if h.Autoclear&autoclearBitmaps == 0 {
		return nil
	}
	if count == 0 || count > maxBitmaps || reserved != 0 || size > 1024*maxBitmaps || offset%uint64(h.ClusterSize()) != 0 || offset > maxOffset-size {
		return fmt.Errorf("qcow2 header: %d bitmaps, directory of %d bytes at offset %d", count, size, offset)
	}
	return nil
}

// Bitmaps reports whether the header has bitmaps, which backup programs use.
func (h *Header) Bitmaps() bool {
	return slices.ContainsFunc(h.extensions, func(e extension) bool { return e.kind == extensionBitmaps })
}

func (h *Header) readBackingFile(r io.ReaderAt, f *fixed) error {
	if f.BackingFileOffset == 0 {
		return nil
	}
	room := uint64(h.ClusterSize()) - f.BackingFileOffset
	if uint64(f.BackingFileSize) > min(maxBackingName, room) {
		return fmt.Errorf("qcow2 header: backing file name of %d bytes is too long", f.BackingFileSize)
	}
	if f.BackingFileSize == 0 {
		return errors.New("qcow2 header: the name of the backing file is empty")
	}
	name := make([]byte, f.BackingFileSize)
	if n, err := r.ReadAt(name, int64(f.BackingFileOffset)); n < len(name) {
		return fmt.Errorf("reading the name of the qcow2 backing file: %w", err)
	}
	h.BackingFile = string(name)
	return checkName("backing file name", h.BackingFile)
}

// checkName refuses names that readers interpret differently: QEMU stops at NUL.
func checkName(what, name string) error {
	if strings.ContainsRune(name, 0) || !utf8.ValidString(name) {
		return fmt.Errorf("qcow2 header: %s %q holds NUL or is not UTF-8", what, name)
	}
	return nil
}
