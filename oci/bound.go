package oci

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci/format"
)

// headSize is how many of a disk's first bytes are judged: a qcow2 header with
// clusters of the usual size, and the volume descriptors of an ISO image.
const headSize = 64 << 10

// A bound is the largest that the file of one disk may become. It begins as the
// largest of any disk, and is lowered, or the disk refused, once its first bytes are
// there. Pieces of one disk that are written at the same time share it.
type bound struct {
	u      *unpacker
	number int // of the disk in the plan

	mu     sync.Mutex
	head   []byte // the first bytes, as far as they have come; nil once they are judged
	judged bool
	limit  int64  // bytes
	why    string // of the limit, for people
}

func (u *unpacker) newBound(number int) *bound {
	return &bound{u: u, number: number, limit: u.fileLimit(), why: fmt.Sprintf("a disk has at most %d (max_disk)", u.maxDisk)}
}

// admit judges bytes that are about to be written at an offset.
func (b *bound) admit(p []byte, offset int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.judged && offset == int64(len(b.head)) {
		b.head = append(b.head, p[:min(len(p), headSize-len(b.head))]...)
		if len(b.head) == headSize {
			if err := b.judge(); err != nil {
				return err
			}
		}
	}
	return b.fits(offset + int64(len(p)))
}

func (b *bound) fits(size int64) error {
	if size > b.limit {
		return fmt.Errorf("%w: unpacks to more than %d bytes: %s", ErrHostile, b.limit, b.why)
	}
	return nil
}

// resume takes the first bytes from a file that an interrupted pull left, or that is
// made of pieces.
func (b *bound) resume(f *os.File) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.judged {
		return nil
	}
	head := make([]byte, headSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the disk's first bytes: %w", err)
	}
	b.head = head[:n]
	if n == headSize {
		return b.judge()
	}
	return nil
}

// finish judges a disk that is complete.
func (b *bound) finish(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := b.resume(f); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.judged { // it has less than headSize
		if err := b.judge(); err != nil {
			return err
		}
	}
	return b.fits(info.Size())
}

func (b *bound) judge() error {
	disk := b.u.plan.Disks[b.number]
	head := b.head
	b.head, b.judged = nil, true
	switch {
	case qcow2.IsQCOW2(head) && (disk.Content == format.QCOW2 || disk.Content == format.Detect):
		return b.judgeQCOW2(head, disk.Size)
	case disk.Content == format.QCOW2:
		return fmt.Errorf("%w: the layer says qcow2, but begins with %q", ErrFormat, head[:min(len(head), len(qcow2.Magic))])
	case disk.Content != format.ISO && !b.u.isOnlyDisk(b.number):
		return nil // data, which may begin with anything
	}
	if what := notADisk(head); what != "" {
		return fmt.Errorf("%w: it is no disk, but %s; want qcow2, or raw with a boot sector or a partition table", ErrFormat, what)
	}
	if disk.Content != format.ISO && isISO(head) {
		return fmt.Errorf("%w: %s", ErrFormat, format.ISOAlone)
	}
	return nil
}

func (b *bound) judgeQCOW2(head []byte, size int64) error {
	h, err := qcow2.ReadPrefix(head)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHostile, err)
	}
	if err := checkHeader(h); err != nil {
		return err
	}
	if b.number == 0 && h.BackingFile != "" {
		_, err := findBacking(nil, b.u.nameOf(0), h.BackingFile, nil)
		return err
	}
	if h.VirtualSize > b.u.maxDisk {
		return fmt.Errorf("%w: a disk of %d bytes, at most %d are allowed (max_disk)", ErrHostile, h.VirtualSize, b.u.maxDisk)
	}
	if most := h.MaxFileSize(); most < b.limit {
		b.limit = most
		b.why = fmt.Sprintf("its header says a virtual size of %s, and %d snapshots (qemu-img convert makes a file without what is unused)",
			units.BytesSize(float64(h.VirtualSize)), h.Snapshots)
	}
	return b.fits(size)
}

// isOnlyDisk: the image has no other but CD-ROM images, so that the machine boots
// from it.
func (u *unpacker) isOnlyDisk(number int) bool {
	for i, disk := range u.plan.Disks {
		if i != number && disk.Content != format.ISO {
			return false
		}
	}
	return true
}

const sector = 512

// foreign are first bytes of files that are no disks.
var foreign = []struct {
	offset int
	magic  string
	what   string
}{
	{0, "\x7fELF", "a program (ELF)"},
	{0, "\x1f\x8b\x08", "compressed once more (gzip)"},
	{0, string(magicXZ), "compressed once more (xz)"},
	{0, string(magicZstd), "compressed once more (zstd)"},
	{0, "BZh", "compressed (bzip2); gzip, xz and zstd are read"},
	{0, "\x04\x22\x4d\x18", "compressed (lz4); gzip, xz and zstd are read"},
	{0, "PK\x03\x04", "a ZIP archive"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{257, "ustar", "a tar archive"},
	{0, "KDMV", "a disk of VMware (VMDK)"},
	{0, "# Disk DescriptorFile", "the description of a disk of VMware (VMDK)"},
	{0, "vhdxfile", "a disk of Hyper-V (VHDX)"},
	{0, "conectix", "a disk of Hyper-V (VHD)"},
	{64, "\x7f\x10\xda\xbe", "a disk of VirtualBox (VDI)"},
	{0, "shdw", "a disk in Apple's format (ASIF)"},
}

// notADisk says what a file is that no machine boots from; empty if one may. A boot
// sector or a partition table settles it: whatever else stands around them.
func notADisk(head []byte) string {
	if len(head) == 0 {
		return "empty"
	}
	if hasBootSector(head) || hasGPT(head) {
		return ""
	}
	for _, f := range foreign {
		if len(head) > f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f.what
		}
	}
	if isText(head[:min(len(head), sector)]) {
		return fmt.Sprintf("text: %.60q", head[:min(len(head), 60)])
	}
	return ""
}

func hasBootSector(head []byte) bool {
	return len(head) >= sector && head[510] == 0x55 && head[511] == 0xaa
}

// hasGPT finds the header of a GUID partition table, in the second sector of 512 or
// 4096 bytes.
func hasGPT(head []byte) bool {
	for _, at := range []int{sector, 4096} {
		if len(head) > at && bytes.HasPrefix(head[at:], []byte("EFI PART")) {
			return true
		}
	}
	return false
}

func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\r' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isoDescriptor is where the volume descriptors of ISO 9660 begin: behind 16 sectors
// of 2048 bytes.
const isoDescriptor = 16 * 2048

// isISO: an ISO 9660 image, which installs machines, or that runs without a disk. On a
// disk that was one, and has partitions now, the descriptor lies in front of them.
func isISO(head []byte) bool {
	if len(head) < isoDescriptor+6 || string(head[isoDescriptor+1:isoDescriptor+6]) != "CD001" {
		return false
	}
	first := firstPartition(head)
	return first < 0 || first <= isoDescriptor/sector
}

// firstPartition is the first sector of the first partition; -1 if there is none.
func firstPartition(head []byte) int64 {
	first := int64(math.MaxInt64)
	if hasGPT(head) && bytes.HasPrefix(head[sector:], []byte("EFI PART")) {
		for at := 2 * sector; at+128 <= min(len(head), isoDescriptor); at += 128 {
			if entry := head[at : at+128]; !bytes.Equal(entry[:16], make([]byte, 16)) {
				first = min(first, int64(min(binary.LittleEndian.Uint64(entry[32:]), math.MaxInt64)))
			}
		}
	} else if hasBootSector(head) {
		for at := 446; at < 510; at += 16 {
			if entry := head[at : at+16]; !bytes.Equal(entry, make([]byte, 16)) {
				first = min(first, int64(binary.LittleEndian.Uint32(entry[8:])))
			}
		}
	}
	if first == math.MaxInt64 {
		return -1
	}
	return first
}
