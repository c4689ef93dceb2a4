package oci

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
	"syscall"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci/format"
)

// Bounds on what one image may ask for, in bytes where they are sizes.
const (
	maxDomainXML   = 4 << 20
	maxGuestConfig = 1 << 20
	maxDisks       = 64
	// parallelDisks is how many disks are unpacked at once: each keeps about two
	// processors busy.
	parallelDisks = 3
	// parallelPieces is how many pieces of disks are transferred at once.
	parallelPieces = 6
)

// An unpacker carries out a plan in a directory that is empty, or that an
// interrupted pull of the same image left.
type unpacker struct {
	src  source
	dir  string
	plan *format.Plan
	// description is what the image says of itself without its disks.
	description *Inspection
	maxDisk     int64
	progress    Progress
	stored      *pieceIndex // of the images in the store

	pieces   chan struct{} // a place for each piece under way
	received atomic.Int64  // of all blobs, in bytes
	space    space
	room     *room

	announced *announcement

	extending sync.Mutex
}

// run makes all files of the image and checks them. The image it returns lacks
// its digest, reference and directory.
func (u *unpacker) run(ctx context.Context) (*Image, error) {
	image := &Image{
		Format:       u.plan.Format,
		Architecture: u.plan.Architecture,
		OS:           u.plan.OS,
		Created:      u.plan.Created,
		Disks:        make([]Disk, len(u.plan.Disks)),
		DomainXML:    u.description.DomainXML,
		Guest:        u.description.Guest,
	}
	if err := u.checkFreeSpace(); err != nil {
		return nil, err
	}
	expect(u.progress, u.plan.TransferSize())
	u.pieces = make(chan struct{}, parallelPieces)
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
func (u *unpacker) complete(image *Image) error {
	if err := nameDisks(u.dir, image.Disks); err != nil {
		return err
	}
	if err := u.writePieceTable(image.Disks); err != nil {
		return err
	}
	image.Disks = withoutRepeated(image.Disks)
	if err := checkDisks(u.dir, image.Disks, u.maxDisk); err != nil {
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
func (u *unpacker) unpackDisk(ctx context.Context, i int, disk format.Disk) (result Disk, err error) {
	f, err := u.openDisk(i)
	if err != nil {
		return Disk{}, fmt.Errorf("making disk %d: %w", i, err)
	}
	defer func() { err = errors.Join(u.diskFull(err), f.Close()) }()
	var state diskState
	switch {
	case disk.Tree != nil:
		state, err = u.unpackTree(ctx, i, f, disk.Tree)
	case disk.IsStream():
		state, err = u.unpackStream(ctx, i, f, disk.Streams[0])
	default:
		state, err = u.unpackPieces(ctx, i, f, disk)
	}
	if err != nil {
		return Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	if disk.Digest != "" && disk.Digest != state.Digest {
		return Disk{}, fmt.Errorf("%w: disk %d has digest %s, its image says %s", ErrHostile, i, state.Digest, disk.Digest)
	}
	if disk.Size != 0 && disk.Size != state.Size {
		return Disk{}, fmt.Errorf("%w: disk %d has %d bytes, its image says %d", ErrHostile, i, state.Size, disk.Size)
	}
	result = Disk{Name: state.Name, Digest: state.Digest, Size: state.Size, CDROM: disk.Content == format.ISO, VirtualSize: state.Size}
	if disk.Name != "" {
		result.Name = disk.Name
	}
	result.alias = disk.Alias
	if result.Format, err = diskFormat(f, disk.Content); err != nil {
		return Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	return result, nil
}

// openDisk opens the file of a disk, which may be there already. A pull that was
// interrupted at its very end has named it.
func (u *unpacker) openDisk(i int) (*os.File, error) {
	path := filepath.Join(u.dir, unnamed(i))
	if name, err := diskName(u.nameOf(i), i); err == nil {
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

func (u *unpacker) blobs(ctx context.Context, blobs []v1.Descriptor) *blobSequence {
	return &blobSequence{ctx: ctx, src: u.src, blobs: blobs, progress: u.progress, received: &u.received}
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

func (u *unpacker) writer(f *os.File, offset, limit int64, b *bound) *sparseWriter {
	return &sparseWriter{file: f, offset: offset, limit: limit, bound: b, room: u.room}
}

func unnamed(i int) string { return fmt.Sprintf(".disk-%d", i) }

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
		return "", fmt.Errorf("%w: the layer says qcow2, but begins with %q", ErrFormat, magic)
	}
	return "raw", nil
}

// sealDisks makes the disks durable and read-only.
func sealDisks(dir string, disks []Disk) error {
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

func writeMetadata(image *Image, dir string) error {
	raw, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", imageFile, err)
	}
	files := map[string][]byte{imageFile: append(raw, '\n')}
	if image.DomainXML != nil {
		files[domainFile] = image.DomainXML
	}
	for name, content := range files {
		if err := writeSynced(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

// writeSynced writes a read-only file in place of any that is there.
func writeSynced(path string, content []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	// Some file systems (vfat, many FUSE ones) cannot sync a directory.
	if err = f.Sync(); errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrInvalid) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("syncing directory: %w", err)
	}
	return nil
}
