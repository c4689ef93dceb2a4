package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/unpack/containerdisk"
	"gitlab-sardine-executor/oci/unpack/decompress"
	"gitlab-sardine-executor/oci/unpack/sparse"
)

const (
	// maxLayerBytes limits the content of all layers apart from the disk, in bytes.
	maxLayerBytes = 64 << 30
	// maxReadings limits how often the layers are read, to follow links.
	maxReadings = 4
)

// unpackContainerDisk writes the disk of a container image.
func (u *unpacker) unpackContainerDisk(ctx context.Context, number int, f *os.File, tree *format.ContainerDisk) (diskState, error) {
	d := &streamDisk{u: u, number: number, file: f}
	if err := d.loadState(); err != nil {
		return diskState{}, err
	}
	if d.state.Size > 0 {
		return d.state, u.newBound(number).finish(f)
	}
	for readings := 1; ; readings++ {
		r := &layerReader{u: u, number: number, file: f, bound: u.newBound(number), other: min(maxLayerBytes, u.fileLimit())}
		next, err := r.read(ctx, tree)
		switch {
		case err != nil:
			return diskState{}, err
		case next == nil:
			if err := errors.Join(r.bound.finish(f), f.Sync()); err != nil {
				return diskState{}, err
			}
			d.state = r.state
			return d.state, d.saveState()
		case readings == maxReadings:
			return diskState{}, fmt.Errorf("%w: more than %d links lead to the disk; the last one is /%s", oci.ErrFormat, maxReadings-1, tree.Path)
		}
		tree = next
		oci.Expect(u.progress, u.plan.TransferSize())
	}
}

// A layerReader reads the layers of a container image once, and writes what seems to be the
// disk.
type layerReader struct {
	u      *unpacker
	number int
	file   *os.File
	bound  *bound
	state  diskState
	// other is how many more bytes the layers may have apart from the disk.
	other int64
}

// read returns where the disk is, if it was not written.
func (l *layerReader) read(ctx context.Context, tree *format.ContainerDisk) (*format.ContainerDisk, error) {
	finder := containerdisk.New(tree, l.write)
	for _, layer := range slices.Backward(tree.Layers) {
		if err := l.readLayer(ctx, finder, layer); err != nil {
			return nil, err
		}
	}
	return finder.Next()
}

// readLayer reads a layer to its end, to verify its digest.
func (l *layerReader) readLayer(ctx context.Context, finder *containerdisk.Finder, layer format.Stream) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blobs := l.u.blobs(ctx, layer.Blobs)
	defer func() { err = errors.Join(err, blobs.Close()) }()
	plain, err := decompress.Options{Compression: layer.Compression, Window: decompress.ZstdWindow}.OpenAhead(blobs)
	if err != nil {
		return blobs.Explain(err)
	}
	err = finder.Read(&boundedReader{r: plain, left: &l.other})
	if final := oci.IsPermanent(err); final {
		cancel()
	}
	if err := errors.Join(err, plain.Close()); err != nil {
		return blobs.Explain(err)
	}
	return blobs.Finish()
}

// write writes the disk.
func (l *layerReader) write(name string, size int64, content io.Reader) error {
	if err := l.u.checkName(l.number, name); err != nil {
		return err
	}
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	// A sparse entry has fewer bytes in the archive than its size.
	l.other += min(size, l.u.fileLimit())
	out := l.u.writer(&sparse.Writeback{File: l.file}, 0, l.u.fileLimit(), l.bound)
	hash := digest.Canonical.Digester()
	if _, err := io.CopyBuffer(io.MultiWriter(hash.Hash(), out), readers.Only(content), make([]byte, readers.BufferSize)); err != nil {
		return err
	}
	l.state = diskState{Name: name, Size: out.Size(), Digest: hash.Digest()}
	return out.Finish()
}

// A boundedReader fails with [oci.ErrInvalid] if it would return more than left bytes.
type boundedReader struct {
	r    io.Reader
	left *int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if *b.left -= int64(n); *b.left < 0 {
		return 0, fmt.Errorf("%w: the layers have too much content beside the disk", oci.ErrInvalid)
	}
	return n, err
}
