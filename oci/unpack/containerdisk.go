package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/unpack/decompress"
)

const (
	// maxLayerEntries limits the files in all layers of an image.
	maxLayerEntries = 1_000_000
	// maxLayerBytes limits the content of all layers apart from the disk, in bytes.
	maxLayerBytes = 64 << 30
	// maxFound limits the names in an error.
	maxFound = 10
)

const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// A layerReader finds the disk in the layers of a container image. It reads them from the
// top: files and whiteouts of upper layers hide files in lower layers.
type layerReader struct {
	u    *unpacker
	disk *format.ContainerDisk
	file *os.File

	hidden  map[string]bool // paths hidden in lower layers
	opaque  map[string]bool // directories with hidden content in lower layers
	found   []string
	state   diskState
	bound   *bound
	entries int
	// other is how many more bytes the layers may have apart from the disk.
	other int64
}

// unpackContainerDisk writes the disk of a container image.
func (u *unpacker) unpackContainerDisk(ctx context.Context, number int, f *os.File, tree *format.ContainerDisk) (diskState, error) {
	d := &streamDisk{u: u, number: number, file: f}
	if err := d.loadState(); err != nil {
		return diskState{}, err
	}
	bound := u.newBound(number)
	if d.state.Size > 0 {
		return d.state, bound.finish(f)
	}
	t := &layerReader{u: u, disk: tree, file: f, hidden: map[string]bool{}, opaque: map[string]bool{}, bound: bound, other: min(maxLayerBytes, u.fileLimit())}
	for _, layer := range slices.Backward(tree.Layers) {
		if err := t.readLayer(ctx, layer); err != nil {
			return diskState{}, err
		}
	}
	switch {
	case len(t.found) == 0 && tree.Directory:
		return diskState{}, fmt.Errorf("%w: a container image without a file in /%s/; want a disk there, or a virtual machine image in another format", oci.ErrFormat, tree.Path)
	case len(t.found) == 0:
		return diskState{}, fmt.Errorf("%w: the image has no file /%s", oci.ErrFormat, tree.Path)
	case len(t.found) > 1:
		return diskState{}, t.severalError()
	}
	if err := bound.finish(f); err != nil {
		return diskState{}, err
	}
	if err := f.Sync(); err != nil {
		return diskState{}, err
	}
	d.state = t.state
	return d.state, d.saveState()
}

// severalError is the error for an image with more than one file in the disk's directory.
func (l *layerReader) severalError() error {
	more := ""
	if len(l.found) > maxFound {
		more = " and others"
	}
	return fmt.Errorf("%w: several files in /%s/: %q%s; want one", oci.ErrFormat, l.disk.Path, l.found[:min(len(l.found), maxFound)], more)
}

// readLayer reads a layer to its end, to verify its digest.
func (l *layerReader) readLayer(ctx context.Context, layer format.Stream) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blobs := l.u.blobs(ctx, layer.Blobs)
	defer func() { err = errors.Join(err, blobs.Close()) }()
	plain, err := decompress.Options{Compression: layer.Compression, Window: decompress.ZstdWindow}.OpenAhead(blobs)
	if err != nil {
		return blobs.Explain(err)
	}
	err = l.readTar(&boundedReader{r: plain, left: &l.other})
	if final := oci.IsPermanent(err); final {
		cancel()
	}
	if err := errors.Join(err, plain.Close()); err != nil {
		return blobs.Explain(err)
	}
	return blobs.Finish()
}

func (l *layerReader) readTar(r io.Reader) error {
	archive := tar.NewReader(r)
	// Whiteouts only affect lower layers.
	hidden, opaque := map[string]bool{}, map[string]bool{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return tarError(err)
		}
		if l.entries++; l.entries > maxLayerEntries {
			return fmt.Errorf("%w: more than %d files in the layers", oci.ErrInvalid, maxLayerEntries)
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if !l.concerns(name) {
			continue
		}
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case base == opaqueWhiteout:
			opaque[dir] = true
			continue
		case strings.HasPrefix(base, whiteout):
			hidden[path.Join(dir, strings.TrimPrefix(base, whiteout))] = true
			continue
		}
		if header.Typeflag != tar.TypeDir {
			hidden[name] = true
		}
		if !l.isHidden(name) {
			if err := l.extract(archive, header, name); err != nil {
				return err
			}
		}
	}
	for name := range hidden {
		l.hidden[name] = true
	}
	for name := range opaque {
		l.opaque[name] = true
	}
	// Read the archive's padding, which is a part of the blob.
	_, err := io.Copy(io.Discard, r)
	return err
}

// concerns reports whether a name is the disk's path, a parent of it, or in it. The name of a
// whiteout counts as the name that it hides.
func (l *layerReader) concerns(name string) bool {
	dir, base := path.Split(name)
	if base == opaqueWhiteout {
		dir = strings.TrimSuffix(dir, "/")
		return dir == "" || dir == l.disk.Path || strings.HasPrefix(l.disk.Path, dir+"/")
	}
	name = path.Join(dir, strings.TrimPrefix(base, whiteout))
	return name == l.disk.Path || strings.HasPrefix(l.disk.Path, name+"/") ||
		l.disk.Directory && path.Dir(name) == l.disk.Path
}

// isHidden reports whether an upper layer hides a path.
func (l *layerReader) isHidden(name string) bool {
	if l.hidden[name] {
		return true
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if l.opaque[dir] || l.hidden[dir] {
			return true
		}
		if dir == "" {
			return false
		}
	}
}

// extract writes the entry to the disk, if it is the disk.
func (l *layerReader) extract(content io.Reader, header *tar.Header, name string) error {
	if above := name != l.disk.Path && strings.HasPrefix(l.disk.Path, name+"/"); above || l.disk.Directory && name == l.disk.Path {
		if header.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: /%s in the image is not a directory", oci.ErrFormat, name)
		}
		return nil
	}
	switch {
	case header.Typeflag == tar.TypeDir && l.disk.Directory:
		return nil
	case header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeGNUSparse:
		return fmt.Errorf("%w: /%s in the image is not a regular file", oci.ErrFormat, name)
	}
	if l.found = append(l.found, path.Base(name)); len(l.found) > 1 {
		if slices.Contains(l.found[:len(l.found)-1], path.Base(name)) {
			return fmt.Errorf("%w: two files /%s in one layer", oci.ErrFormat, name)
		}
		if len(l.found) > maxFound {
			return l.severalError()
		}
		return nil // more names, for the error
	}
	if err := l.u.checkName(l.bound.number, path.Base(name)); err != nil {
		return err
	}
	// A sparse entry has fewer bytes in the archive than its size.
	l.other += min(header.Size, l.u.fileLimit())
	out := l.u.writer(l.file, 0, l.u.fileLimit(), l.bound)
	hash := digest.Canonical.Digester()
	if _, err := io.CopyBuffer(io.MultiWriter(hash.Hash(), out), readers.Only(content), make([]byte, readers.BufferSize)); err != nil {
		return tarError(err)
	}
	l.state = diskState{Name: path.Base(name), Size: out.Size(), Digest: hash.Digest()}
	return out.Finish()
}

// tarError marks errors of the archive as damaged content.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &decompress.DamagedError{Err: err}
	}
	return err
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
