package unpack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/unpack/decompress"
	"gitlab-sardine-executor/oci/unpack/sparse"
)

// unpackChunks writes a disk from its chunks, several at a time. It keeps valid chunks of an
// interrupted pull, and copies chunks that another image in the store has.
func (u *unpacker) unpackChunks(ctx context.Context, i int, f *os.File, disk format.Disk) (diskState, error) {
	size, err := u.checkChunks(disk)
	if err != nil {
		return diskState{}, err
	}
	before, err := f.Stat()
	if err != nil {
		return diskState{}, err
	}
	// This makes a hole of every missing chunk.
	if err := f.Truncate(size); err != nil {
		return diskState{}, err
	}
	bound, to := u.newBound(i), &sparse.Writeback{File: f}
	group, ctx := errgroup.WithContext(ctx)
	for i := range disk.Streams {
		select {
		case u.chunks <- struct{}{}:
		case <-ctx.Done():
			return diskState{}, cmp.Or(group.Wait(), context.Cause(ctx)) // which may be the same error
		}
		p := &chunk{u: u, file: f, to: to, bound: bound, stream: disk.Streams[i], limit: u.chunkLimit(disk, i), old: before.Size() > disk.Streams[i].Offset}
		group.Go(func() error {
			defer func() { <-u.chunks }()
			return p.make(ctx)
		})
	}
	if err := group.Wait(); err != nil {
		return diskState{}, err
	}
	if err := bound.finish(f); err != nil {
		return diskState{}, err
	}
	if err := f.Sync(); err != nil {
		return diskState{}, err
	}
	return u.finishChunks(f, disk)
}

// checkChunks returns the size of a disk as far as it is known, and refuses chunks that
// overlap or reach beyond the disk.
func (u *unpacker) checkChunks(disk format.Disk) (int64, error) {
	limit := disk.Size
	if limit == 0 {
		limit = u.fileLimit()
	}
	if limit > u.fileLimit() {
		return 0, fmt.Errorf("%w: a disk of %d bytes, at most %d are allowed (max_disk)", oci.ErrInvalid, disk.Size, u.maxDisk)
	}
	end := int64(0)
	for i, s := range disk.Streams {
		if s.Offset < end || s.Size < 0 || s.Offset > limit || s.Size > limit-s.Offset {
			return 0, fmt.Errorf("%w: chunk %d is at %d to %d, outside of %d to %d", oci.ErrInvalid, i, s.Offset, s.Offset+s.Size, end, limit)
		}
		end = s.Offset + s.Size
	}
	return max(disk.Size, end), nil
}

// chunkLimit returns the maximum size of chunk i: the size in the manifest, or the space up
// to the next chunk.
func (u *unpacker) chunkLimit(disk format.Disk, i int) int64 {
	s := disk.Streams[i]
	switch {
	case s.Size > 0:
		return s.Size
	case i+1 < len(disk.Streams):
		return disk.Streams[i+1].Offset - s.Offset
	case disk.Size > 0:
		return disk.Size - s.Offset
	}
	return u.fileLimit() - s.Offset
}

// finishChunks returns the state of the complete disk. If a chunk has no digest, it reads the
// disk to compute one.
func (u *unpacker) finishChunks(f *os.File, disk format.Disk) (diskState, error) {
	info, err := f.Stat()
	if err != nil {
		return diskState{}, err
	}
	state := diskState{Size: info.Size(), Digest: disk.Digest}
	for _, s := range disk.Streams {
		if s.Digest == "" {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return diskState{}, err
			}
			state.Digest, err = digest.FromReader(f)
			return state, err
		}
	}
	return state, nil
}

// A chunk is a stream that is written to its place in a disk.
type chunk struct {
	u      *unpacker
	file   *os.File
	to     *sparse.Writeback // of file, shared by its chunks
	bound  *bound
	stream format.Stream
	limit  int64
	old    bool // an interrupted pull may have written here
}

func (p *chunk) make(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if p.old {
		p.old = hasData(p.file, p.stream.Offset, p.limit)
	}
	if p.stream.Digest != "" {
		if p.old && p.verify() {
			return p.resumeBound()
		}
		if done, err := p.u.stored.reuse(p); err != nil {
			return err
		} else if done {
			return p.resumeBound()
		}
	}
	return p.download(ctx)
}

// resumeBound checks the first bytes of the disk if this chunk has them and was not written.
func (p *chunk) resumeBound() error {
	if p.stream.Offset > 0 {
		return nil
	}
	return p.bound.resume(p.file)
}

// verify reports whether the file has the chunk already.
func (p *chunk) verify() bool {
	h := p.stream.Digest.Algorithm().Hash()
	n, err := io.CopyBuffer(h, readers.Only(io.NewSectionReader(p.file, p.stream.Offset, p.stream.Size)), make([]byte, readers.BufferSize))
	return err == nil && n == p.stream.Size && digest.NewDigest(p.stream.Digest.Algorithm(), h) == p.stream.Digest
}

func (p *chunk) writer() *sparse.Writer {
	out := p.u.writer(p.to, p.stream.Offset, p.limit, p.bound)
	out.Dense = p.old
	return out
}

func (p *chunk) download(ctx context.Context) (err error) {
	blobs := p.u.blobs(ctx, p.stream.Blobs)
	defer func() { err = errors.Join(err, blobs.Close()) }()
	how := decompress.Options{Compression: p.stream.Compression, Window: decompress.ChunkWindow}
	plain, err := how.Open(blobs)
	if err != nil {
		return blobs.Explain(err)
	}
	out := p.writer()
	var h hash.Hash
	var to io.Writer = out
	if p.stream.Digest != "" {
		h = p.stream.Digest.Algorithm().Hash()
		to = io.MultiWriter(h, out)
	}
	_, err = io.CopyBuffer(to, readers.Only(plain), make([]byte, readers.BufferSize))
	if err := errors.Join(err, plain.Close()); err != nil {
		return blobs.Explain(err)
	}
	if err := blobs.Finish(); err != nil {
		return err
	}
	out.StartWriteback()
	if p.stream.Size == 0 {
		return p.u.extend(p.file, out.Offset)
	}
	return p.check(out.Size(), h)
}

// extend makes a file at least size bytes long: a hole at the end of a chunk of unknown size
// does not.
func (u *unpacker) extend(f *os.File, size int64) error {
	u.extending.Lock()
	defer u.extending.Unlock()
	info, err := f.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	return f.Truncate(size)
}

func (p *chunk) check(size int64, h hash.Hash) error {
	if size != p.stream.Size {
		return fmt.Errorf("%w: the chunk at %d has %d bytes, its image says %d", oci.ErrInvalid, p.stream.Offset, size, p.stream.Size)
	}
	if h == nil {
		return nil
	}
	if got := digest.NewDigest(p.stream.Digest.Algorithm(), h); got != p.stream.Digest {
		return fmt.Errorf("%w: the chunk at %d has digest %s, its image says %s", oci.ErrInvalid, p.stream.Offset, got, p.stream.Digest)
	}
	return nil
}

// hasData reports whether a range is more than a hole. File systems without SEEK_DATA report
// data everywhere.
func hasData(f *os.File, offset, size int64) bool {
	at, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return false
	}
	return err != nil || at < offset+size
}
