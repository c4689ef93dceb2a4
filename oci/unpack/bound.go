package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/chain"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/unpack/filetype"
)

// headSize is how many first bytes of a disk are checked: they include a qcow2 header with
// clusters of the default size, and the volume descriptors of an ISO image.
const headSize = 64 << 10

// A bound limits the size of one disk file. It starts with the limit for any disk, and is
// lowered once the first bytes have arrived; these can also refuse the disk. Chunks of one
// disk that are written concurrently share it.
type bound struct {
	u      *unpacker
	number int // of the disk in the plan

	mu     sync.Mutex
	head   []byte // the first bytes received so far; nil once they are checked
	judged bool
	limit  int64  // bytes
	why    string // reason for the limit, for people
}

func (u *unpacker) newBound(number int) *bound {
	return &bound{u: u, number: number, limit: u.fileLimit(), why: fmt.Sprintf("a disk has at most %d (max_disk)", u.maxDisk)}
}

// admit checks bytes before they are written at an offset.
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
		return fmt.Errorf("%w: unpacks to more than %d bytes: %s", oci.ErrInvalid, b.limit, b.why)
	}
	return nil
}

// resume reads the first bytes from a file: that of an interrupted pull, or one written in
// chunks.
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

// finish checks a complete disk.
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
	if !b.judged { // it is shorter than headSize
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
		return fmt.Errorf("%w: the layer says qcow2, but begins with %q", oci.ErrFormat, head[:min(len(head), len(qcow2.Magic))])
	case disk.Content != format.ISO && !b.u.isOnlyDisk(b.number):
		return nil // a data disk may begin with anything
	case disk.Content == format.Raw && b.u.plan.Format == format.Artifact && qcow2.IsQCOW2(head):
		return fmt.Errorf("%w: the image says raw, but it is a qcow2 file: name it *.qcow2", oci.ErrFormat)
	}
	if what := filetype.NotADisk(head); what != "" {
		return fmt.Errorf("%w: it is not a disk but %s; want qcow2, or raw with a boot sector or a partition table", oci.ErrFormat, what)
	}
	if disk.Content != format.ISO && filetype.IsISO(head) {
		return fmt.Errorf("%w: %s", oci.ErrFormat, format.ISOAlone)
	}
	return nil
}

func (b *bound) judgeQCOW2(head []byte, size int64) error {
	h, err := qcow2.ReadPrefix(head)
	if err != nil {
		return fmt.Errorf("%w: %w", oci.ErrInvalid, err)
	}
	if err := chain.CheckHeader(h); err != nil {
		return err
	}
	if b.number == 0 && h.BackingFile != "" {
		_, err := chain.FindBacking(nil, b.u.nameOf(0), h.BackingFile, nil)
		return err
	}
	if h.VirtualSize > b.u.maxDisk {
		return fmt.Errorf("%w: a disk of %d bytes, at most %d are allowed (max_disk)", oci.ErrInvalid, h.VirtualSize, b.u.maxDisk)
	}
	if most := h.MaxFileSize(); most < b.limit {
		b.limit = most
		b.why = fmt.Sprintf("its header says a virtual size of %s, and %d snapshots (qemu-img convert makes a file without what is unused)",
			units.BytesSize(float64(h.VirtualSize)), h.Snapshots)
	}
	return b.fits(size)
}

// isOnlyDisk reports whether the machine must boot from this disk: the others are CD-ROM
// images.
func (u *unpacker) isOnlyDisk(number int) bool {
	for i, disk := range u.plan.Disks {
		if i != number && disk.Content != format.ISO {
			return false
		}
	}
	return true
}
