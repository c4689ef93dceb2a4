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

// Bounds on what one image may ask for, in bytes where they are sizes.
const (
	maxDisks = 64
	// parallelDisks is how many disks are unpacked at once: each keeps about two
	// processors busy.
	parallelDisks = 3
	// parallelPieces is how many pieces of disks are transferred at once.
	parallelChunks = 6
)

// An unpacker carries out a plan in a directory that is empty, or that an
// interrupted pull of the same image left.
type unpacker struct {
	src      transport.Source
	dir      string
	plan     *format.Plan
	maxDisk  int64
	progress oci.Progress
	stored   *chunkIndex // of the images in the store
	// domainXML and guest are what the image says of itself without its disks.
	domainXML []byte
	guest     oci.GuestConfig

	chunks   chan struct{} // a place for each piece under way
	received atomic.Int64  // of all blobs, in bytes
	space    freeBefore
	room     *space.Budget

	announced *space.Announcement

	extending sync.Mutex
}

// Options say where an image is unpacked.
type Options struct {
	// Dir is empty, or what an interrupted pull of the same image left.
	Dir string
	// Images holds the directories of other images, from which pieces are reused.
	Images string
	// DomainXML and Guest are what the image says of itself without its disks.
	DomainXML []byte
	Guest     oci.GuestConfig
	// MaxDisk is the largest disk accepted, in bytes.
	MaxDisk int64
	// Reserve stays free on the file system, which Ask asks for its free space.
	Reserve  space.Reserve
	Ask      func(dir string) (space.Room, error)
	Progress oci.Progress
}

// Run makes all files of an image and checks them. The image it returns
// lacks its digest, reference and directory.
func Run(ctx context.Context, src transport.Source, plan *format.Plan, o Options) (*oci.Image, error) {
	u := &unpacker{
		src: src, dir: o.Dir, plan: plan, domainXML: o.DomainXML, guest: o.Guest, maxDisk: o.MaxDisk, progress: o.Progress,
		stored: findChunks(o.Images, plan), room: space.NewBudget(o.Dir, o.Reserve, o.Ask), announced: space.Announce(o.Dir, plan.TransferSize()),
	}
	image, err := u.run(ctx)
	return image, errors.Join(err, u.stored.Close(), u.announced.End())
}

// run makes all files of the image and checks them. The image it returns lacks
// its digest, reference and directory.
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

// complete gives the finished files their names, checks and seals them.
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
			return fmt.Errorf("tidying the image's directory: %w", err)
		}
	}
	return nil
}

// unpackDisk makes the file of the disk with number i, synced. It stays under a
// name of ours until every disk's own name is known.
func (u *unpacker) unpackDisk(ctx context.Context, i int, disk format.Disk) (result oci.Disk, err error) {
	f, err := u.openDisk(i)
	if err != nil {
		return oci.Disk{}, fmt.Errorf("making disk %d: %w", i, err)
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
		return oci.Disk{}, fmt.Errorf("%w: disk %d has digest %s, its image says %s", oci.ErrHostile, i, state.Digest, disk.Digest)
	}
	if disk.Size != 0 && disk.Size != state.Size {
		return oci.Disk{}, fmt.Errorf("%w: disk %d has %d bytes, its image says %d", oci.ErrHostile, i, state.Size, disk.Size)
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

// openDisk opens the file of a disk, which may be there already. A pull that was
// interrupted at its very end has named it.
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

// nameOf is the name that a disk has as far as it is known now.
func (u *unpacker) nameOf(i int) string {
	if name := u.plan.Disks[i].Name; name != "" {
		return name
	}
	var state diskState
	if raw, err := os.ReadFile(u.statePath(i)); err == nil {
		_ = json.Unmarshal(raw, &state) // a state that cannot be read names nothing
	}
	return state.Name
}

func (u *unpacker) blobs(ctx context.Context, blobs []v1.Descriptor) *blobreader.Sequence {
	return blobreader.New(ctx, u.src, blobs, u.progress, &u.received)
}

// fileLimit is the largest file for a disk of the largest size: a full qcow2 is a
// little larger than what it holds.
func (u *unpacker) fileLimit() int64 { return fileLimit(u.maxDisk) }

func fileLimit(maxDisk int64) int64 {
	if maxDisk > math.MaxInt64/2-64<<20 {
		return math.MaxInt64
	}
	return maxDisk + maxDisk/8 + 64<<20
}

func (u *unpacker) writer(f *os.File, offset, limit int64, b *bound) *sparse.Writer {
	return &sparse.Writer{File: f, Offset: offset, Limit: limit, Admit: b.admit, Room: u.room}
}

// diskFormat is "qcow2" or "raw". Where the image says raw, the file is raw
// whatever its first bytes: the guest wrote them.
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

// sealDisks makes the disks durable and read-only.
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
