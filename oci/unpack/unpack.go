package unpack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/chain"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/transport"
	"gitlab-sardine-executor/oci/unpack/blobreader"
	"gitlab-sardine-executor/oci/unpack/sparse"
)

// Limits for one image.
const (
	maxDisks = 64
	// parallelDisks is how many disks are unpacked at once; each uses about two
	// processors.
	parallelDisks = 3
	// parallelChunks is how many chunks are transferred at once.
	parallelChunks = 6
)

// An unpacker writes the disks of a plan into a directory. The directory is empty or has the
// files of an interrupted pull of the same image.
type unpacker struct {
	src      transport.Source
	dir      string
	plan     *format.Plan
	maxDisk  int64
	progress oci.Progress
	stored   *chunkIndex // of the images in the store
	// domainXML and guest are the other parts of the image.
	domainXML []byte
	guest     oci.GuestConfig

	chunks   chan struct{} // a slot for each chunk in progress
	received atomic.Int64  // of all blobs, in bytes
	space    freeBefore
	room     *space.Budget

	announced *space.Announcement

	extending sync.Mutex
}

// Options of [Run].
type Options struct {
	// Dir is empty or has the files of an interrupted pull of the same image.
	Dir string
	// Images has the directories of other images, for chunks to reuse.
	Images string
	// DomainXML and Guest are the other parts of the image.
	DomainXML []byte
	Guest     oci.GuestConfig
	// MaxDisk is the maximum size of a disk, in bytes.
	MaxDisk int64
	// Reserve stays free on the file system. Ask measures its free space.
	Reserve  space.Reserve
	Ask      func(dir string) (space.Room, error)
	Progress oci.Progress
}

// Run writes and checks all files of an image. The image that it returns has no digest,
// reference and directory yet.
func Run(ctx context.Context, src transport.Source, plan *format.Plan, o Options) (*oci.Image, error) {
	u := &unpacker{
		src: src, dir: o.Dir, plan: plan, domainXML: o.DomainXML, guest: o.Guest, maxDisk: o.MaxDisk, progress: o.Progress,
		stored: findChunks(o.Images, plan), room: space.NewBudget(o.Dir, o.Reserve, o.Ask), announced: space.Announce(o.Dir, plan.TransferSize()),
	}
	image, err := u.run(ctx)
	return image, errors.Join(err, u.stored.Close(), u.announced.End())
}

func (u *unpacker) run(ctx context.Context) (*oci.Image, error) {
	image := &oci.Image{
		Format:       u.plan.Format,
		Architecture: u.plan.Architecture,
		OS:           u.plan.OS,
		Created:      u.plan.Created,
		Disks:        make([]oci.Disk, len(u.plan.Disks)),
		DomainXML:    u.domainXML,
		Guest:        u.guest,
	}
	if err := u.checkFreeSpace(); err != nil {
		return nil, err
	}
	oci.Expect(u.progress, u.plan.TransferSize())
	u.chunks = make(chan struct{}, parallelChunks)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelDisks)
	for i, disk := range u.plan.Disks {
		group.Go(func() (err error) {
			image.Disks[i], err = u.unpackDisk(groupCtx, i, disk)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return image, u.complete(image)
}

// complete renames, checks and seals the finished files.
func (u *unpacker) complete(image *oci.Image) error {
	if err := chain.NameDisks(u.dir, image.Disks); err != nil {
		return err
	}
	if err := u.writeChunkTable(image.Disks); err != nil {
		return err
	}
	image.Disks = chain.WithoutRepeated(image.Disks)
	if err := chain.CheckDisks(u.dir, image.Disks, u.maxDisk); err != nil {
		return err
	}
	if err := sealDisks(u.dir, image.Disks); err != nil {
		return err
	}
	for i := range u.plan.Disks {
		if err := os.Remove(u.statePath(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cleaning up the image's directory: %w", err)
		}
	}
	return nil
}

// unpackDisk writes and syncs the file of disk i. The file gets its final name when the names
// of all disks are known.
func (u *unpacker) unpackDisk(ctx context.Context, i int, disk format.Disk) (result oci.Disk, err error) {
	f, err := u.openDisk(i)
	if err != nil {
		return oci.Disk{}, fmt.Errorf("creating disk %d: %w", i, err)
	}
	defer func() { err = errors.Join(u.diskFull(err), f.Close()) }()
	var state diskState
	switch {
	case disk.ContainerDisk != nil:
		state, err = u.unpackContainerDisk(ctx, i, f, disk.ContainerDisk)
	case disk.IsStream():
		state, err = u.unpackStream(ctx, i, f, disk.Streams[0])
	default:
		state, err = u.unpackChunks(ctx, i, f, disk)
	}
	if err != nil {
		return oci.Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	if disk.Digest != "" && disk.Digest != state.Digest {
		return oci.Disk{}, fmt.Errorf("%w: disk %d has digest %s, its image says %s", oci.ErrInvalid, i, state.Digest, disk.Digest)
	}
	if disk.Size != 0 && disk.Size != state.Size {
		return oci.Disk{}, fmt.Errorf("%w: disk %d has %d bytes, its image says %d", oci.ErrInvalid, i, state.Size, disk.Size)
	}
	result = oci.Disk{Name: state.Name, Digest: state.Digest, Size: state.Size, CDROM: disk.Content == format.ISO, VirtualSize: state.Size}
	if disk.Name != "" {
		result.Name = disk.Name
	}
	result.Alias = disk.Alias
	if result.Format, err = diskFormat(f, disk.Content); err != nil {
		return oci.Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	return result, nil
}

// openDisk opens or creates the file of a disk. If a pull was interrupted at its very end,
// the file has its final name.
func (u *unpacker) openDisk(i int) (*os.File, error) {
	path := filepath.Join(u.dir, chain.Unnamed(i))
	if name, err := chain.DiskName(u.nameOf(i), i); err == nil {
		named := filepath.Join(u.dir, name)
		err := os.Rename(named, path)
		if err == nil {
			err = os.Chmod(path, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// nameOf returns the name of a disk, as far as it is known.
func (u *unpacker) nameOf(i int) string {
	if name := u.plan.Disks[i].Name; name != "" {
		return name
	}
	var state diskState
	if raw, err := os.ReadFile(u.statePath(i)); err == nil {
		_ = json.Unmarshal(raw, &state) // an unreadable state has no name
	}
	return state.Name
}

func (u *unpacker) blobs(ctx context.Context, blobs []v1.Descriptor) *blobreader.Sequence {
	return blobreader.New(ctx, u.src, blobs, u.progress, &u.received)
}

// fileLimit returns the maximum size of a disk file: a full qcow2 file is slightly larger
// than its content.
func (u *unpacker) fileLimit() int64 { return fileLimit(u.maxDisk) }

func fileLimit(maxDisk int64) int64 {
	if maxDisk > math.MaxInt64/2-64<<20 {
		return math.MaxInt64
	}
	return maxDisk + maxDisk/8 + 64<<20
}

func (u *unpacker) writer(to *sparse.Writeback, offset, limit int64, b *bound) *sparse.Writer {
	return &sparse.Writer{To: to, Offset: offset, Limit: limit, Admit: b.admit, Room: u.room}
}

// diskFormat returns "qcow2" or "raw". A disk that the image calls raw is raw whatever its
// first bytes, which a guest may have written.
func diskFormat(f *os.File, content format.Content) (string, error) {
	if content == format.Raw || content == format.ISO {
		return "raw", nil
	}
	magic := make([]byte, len(qcow2.Magic))
	if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("reading the finished disk: %w", err)
	}
	switch {
	case qcow2.IsQCOW2(magic):
		return "qcow2", nil
	case content == format.QCOW2:
		return "", fmt.Errorf("%w: the layer says qcow2, but begins with %q", oci.ErrFormat, magic)
	}
	return "raw", nil
}

// sealDisks makes the disks read-only and syncs them.
func sealDisks(dir string, disks []oci.Disk) error {
	for _, disk := range disks {
		f, err := os.Open(filepath.Join(dir, disk.Name))
		if err != nil {
			return fmt.Errorf("sealing disk %s: %w", disk.Name, err)
		}
		if err := errors.Join(f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sealing disk %s: %w", disk.Name, err)
		}
	}
	return nil
}
