package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"
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
)

// An unpacker carries out a plan in an empty directory.
type unpacker struct {
	src      source
	dir      string
	plan     *format.Plan
	maxDisk  int64
	progress Progress
}

// run makes all files of the image and checks them. The image it returns lacks
// its digest, reference and directory.
func (u *unpacker) run(ctx context.Context) (*Image, error) {
	if len(u.plan.Disks) > maxDisks {
		return nil, fmt.Errorf("%w: %d disks, at most %d are accepted", ErrHostile, len(u.plan.Disks), maxDisks)
	}
	image := &Image{
		Format:       u.plan.Format,
		Architecture: u.plan.Architecture,
		OS:           u.plan.OS,
		Created:      u.plan.Created,
		Disks:        make([]Disk, len(u.plan.Disks)),
	}
	var err error
	if image.DomainXML, image.Guest, err = u.readConfig(ctx); err != nil {
		return nil, err
	}
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
	if err := nameDisks(u.dir, image.Disks); err != nil {
		return nil, err
	}
	if err := checkDisks(u.dir, image.Disks, u.maxDisk); err != nil {
		return nil, err
	}
	return image, sealDisks(u.dir, image.Disks)
}

func (u *unpacker) readConfig(ctx context.Context) (domain []byte, guest GuestConfig, err error) {
	if desc := u.plan.DomainXML; desc != nil {
		if domain, err = readBlob(ctx, u.src, *desc, maxDomainXML); err != nil {
			return nil, guest, fmt.Errorf("domain XML: %w", err)
		}
	}
	if desc := u.plan.GuestConfig; desc != nil {
		raw, err := readBlob(ctx, u.src, *desc, maxGuestConfig)
		if err != nil {
			return nil, guest, fmt.Errorf("VM config: %w", err)
		}
		if guest, err = ParseGuestConfig(raw); err != nil {
			return nil, guest, err
		}
	}
	return domain, guest, nil
}

// unpackDisk makes the file of the disk with number i. It stays under a name of
// ours until every disk's own name is known.
func (u *unpacker) unpackDisk(ctx context.Context, i int, disk format.Disk) (result Disk, err error) {
	f, err := os.OpenFile(filepath.Join(u.dir, unnamed(i)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Disk{}, fmt.Errorf("making disk %d: %w", i, err)
	}
	defer func() { err = errors.Join(diskFull(err, u.dir), f.Close()) }()
	name, d, size, err := u.writeStreams(ctx, f, disk)
	if err != nil {
		return Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	if disk.Digest != "" && disk.Digest != d {
		return Disk{}, fmt.Errorf("%w: disk %d has digest %s, its image says %s", ErrHostile, i, d, disk.Digest)
	}
	if disk.Name != "" {
		name = disk.Name
	}
	result = Disk{Name: name, Digest: d, Size: size, CDROM: disk.Content == format.ISO, VirtualSize: size}
	if result.Format, err = diskFormat(f, disk.Content); err != nil {
		return Disk{}, fmt.Errorf("disk %d: %w", i, err)
	}
	return result, nil
}

// writeStreams writes the content of a disk to f. name is what its gzip header
// says, if it has one.
func (u *unpacker) writeStreams(ctx context.Context, f *os.File, disk format.Disk) (name string, d digest.Digest, size int64, err error) {
	if len(disk.Streams) != 1 || disk.Streams[0].Offset != 0 {
		return "", "", 0, fmt.Errorf("%w: %s disk of %d streams", ErrFormat, u.plan.Format, len(disk.Streams))
	}
	stream := disk.Streams[0]
	blobs := &blobSequence{ctx: ctx, src: u.src, blobs: stream.Blobs, progress: u.progress}
	defer blobs.Close()
	plain, err := decompress(blobs, stream.Compression)
	if err != nil {
		return "", "", 0, blobs.explain(err)
	}
	hash := digest.Canonical.Digester()
	out := &sparseWriter{file: f, limit: fileLimit(u.maxDisk)}
	_, err = io.CopyBuffer(io.MultiWriter(hash.Hash(), out), onlyReader{plain}, make([]byte, copyBuffer))
	// Only now is blobs ours again.
	if err := errors.Join(err, plain.Close()); err != nil {
		return "", "", 0, blobs.explain(err)
	}
	// The decompressor may stop before the end of the last blob; its digest counts.
	if err := blobs.finish(); err != nil {
		return "", "", 0, err
	}
	if err := out.Finish(); err != nil {
		return "", "", 0, err
	}
	return plain.Name(), hash.Digest(), out.Size(), nil
}

// fileLimit is the largest file for a disk of size bytes: a full qcow2 is a
// little larger than what it holds.
func fileLimit(size int64) int64 { return size + size/8 + 64<<20 }

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

// diskFull says how much room there was.
func diskFull(err error, dir string) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	var stat syscall.Statfs_t
	if syscall.Statfs(dir, &stat) != nil {
		return err
	}
	return fmt.Errorf("disk full (%d MiB free in %s): %w", int64(stat.Bavail)*stat.Bsize>>20, dir, err)
}

// sealDisks makes the disks durable and read-only.
func sealDisks(dir string, disks []Disk) error {
	for _, disk := range disks {
		f, err := os.Open(filepath.Join(dir, disk.Name))
		if err != nil {
			return fmt.Errorf("sealing disk %s: %w", disk.Name, err)
		}
		if err := errors.Join(f.Chmod(0o444), f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sealing disk %s: %w", disk.Name, diskFull(err, dir))
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
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return fmt.Errorf("writing image: %w", err)
		}
		_, err = f.Write(content)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("writing %s: %w", name, diskFull(err, dir))
		}
	}
	return nil
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

// blobSequence reads blobs one after the other as one stream, each verified.
type blobSequence struct {
	ctx      context.Context
	src      source
	blobs    []v1.Descriptor // still to be opened
	progress Progress

	open     io.Closer // nil if none is
	reader   *verifier
	transfer Transfer
	err      error
}

func (b *blobSequence) Read(p []byte) (int, error) {
	for {
		if b.err == nil {
			b.err = b.ctx.Err()
		}
		if b.err != nil {
			return 0, b.err
		}
		if b.reader == nil {
			if b.err = b.next(); b.err != nil {
				return 0, b.err
			}
		}
		n, err := b.reader.Read(p)
		b.transfer.Add(int64(n))
		if err != nil {
			b.end(err)
		}
		if n > 0 || b.err != nil {
			return n, b.err
		}
	}
}

func (b *blobSequence) next() error {
	if len(b.blobs) == 0 {
		return io.EOF
	}
	desc := b.blobs[0]
	b.blobs = b.blobs[1:]
	blob, err := b.src.Blob(b.ctx, desc)
	if err != nil {
		return err
	}
	b.open, b.reader = blob, verify(blob, desc)
	b.transfer = b.progress.Start(descriptorName(desc), desc.Size)
	return nil
}

// end closes the blob under way.
func (b *blobSequence) end(err error) {
	if errors.Is(err, io.EOF) {
		err = nil
	}
	err = errors.Join(err, b.open.Close())
	b.transfer.Done(err)
	b.open, b.reader, b.err = nil, nil, err
}

// finish reads what is left, to verify it.
func (b *blobSequence) finish() error {
	_, err := io.Copy(io.Discard, onlyReader{b})
	return err
}

// explain chooses between the error of a decompressor and the reason behind it:
// a blob that could not be read or is not what its manifest says.
func (b *blobSequence) explain(err error) error {
	var damaged *damagedError
	if !errors.As(err, &damaged) {
		return err
	}
	if cause := b.finish(); cause != nil {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrFormat, err)
}

func (b *blobSequence) Close() error {
	if b.open != nil {
		b.end(context.Cause(b.ctx))
	}
	if b.err == nil {
		b.err = fs.ErrClosed
	}
	return nil
}

// onlyReader hides WriteTo, by which io.Copy would bypass the buffer's size.
type onlyReader struct{ io.Reader }
