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
	// maxTreeEntries bounds the files in all layers of a tree.
	maxLayerEntries = 1_000_000
	// maxTreeOther bounds what is not the disk in all layers of a tree, in bytes.
	maxLayerBytes = 64 << 30
	// maxFound bounds the names in an error.
	maxFound = 10
)

const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// A layerReader finds the disk in the layers of a container image, which it reads
// from the topmost down: what an upper layer has, or has whited out, hides what
// lies below.
type layerReader struct {
	u    *unpacker
	disk *format.ContainerDisk
	file *os.File

	hidden  map[string]bool // paths of which lower layers count for nothing
	opaque  map[string]bool // directories whose content in lower layers counts for nothing
	found   []string
	state   diskState
	bound   *bound
	entries int
	// other are the bytes of all layers, the disk apart, that may still come.
	other int64
}

// unpackContainerDisk makes a disk of the file that a tree names.
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

// severalError is the error for a tree with more than one file. What is found is there for
// good, for layers are read from the topmost down.
func (t *layerReader) severalError() error {
	more := ""
	if len(t.found) > maxFound {
		more = " and others"
	}
	return fmt.Errorf("%w: several files in /%s/: %q%s; want one", oci.ErrFormat, t.disk.Path, t.found[:min(len(t.found), maxFound)], more)
}

// readLayer reads a whole layer, for its digest.
func (t *layerReader) readLayer(ctx context.Context, layer format.Stream) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blobs := t.u.blobs(ctx, layer.Blobs)
	defer func() { err = errors.Join(err, blobs.Close()) }()
	plain, err := decompress.Options{Compression: layer.Compression, Window: decompress.ZstdWindow}.OpenAhead(blobs)
	if err != nil {
		return blobs.Explain(err)
	}
	err = t.readTar(&boundedReader{r: plain, left: &t.other})
	if final := oci.Final(err); final {
		cancel()
	}
	if err := errors.Join(err, plain.Close()); err != nil {
		return blobs.Explain(err)
	}
	return blobs.Finish()
}

func (t *layerReader) readTar(r io.Reader) error {
	archive := tar.NewReader(r)
	// Whiteouts of a layer speak of those below.
	hidden, opaque := map[string]bool{}, map[string]bool{}
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return tarError(err)
		}
		if t.entries++; t.entries > maxLayerEntries {
			return fmt.Errorf("%w: more than %d files in the layers", oci.ErrHostile, maxLayerEntries)
		}
		name := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if !t.concerns(name) {
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
		if !t.isHidden(name) {
			if err := t.extract(archive, header, name); err != nil {
				return err
			}
		}
	}
	for name := range hidden {
		t.hidden[name] = true
	}
	for name := range opaque {
		t.opaque[name] = true
	}
	// The archive's padding belongs to the blob.
	_, err := io.Copy(io.Discard, r)
	return err
}

// concerns reports whether a name is the tree's path, above it, or in it; names of
// whiteouts count as what they stand for.
func (t *layerReader) concerns(name string) bool {
	dir, base := path.Split(name)
	if base == opaqueWhiteout {
		dir = strings.TrimSuffix(dir, "/")
		return dir == "" || dir == t.disk.Path || strings.HasPrefix(t.disk.Path, dir+"/")
	}
	name = path.Join(dir, strings.TrimPrefix(base, whiteout))
	return name == t.disk.Path || strings.HasPrefix(t.disk.Path, name+"/") ||
		t.disk.Directory && path.Dir(name) == t.disk.Path
}

// isHidden reports whether an upper layer hides a path.
func (t *layerReader) isHidden(name string) bool {
	if t.hidden[name] {
		return true
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if dir == "." {
			dir = ""
		}
		if t.opaque[dir] || t.hidden[dir] {
			return true
		}
		if dir == "" {
			return false
		}
	}
}

// take writes the entry to the disk, if it is the one.
func (t *layerReader) extract(content io.Reader, header *tar.Header, name string) error {
	if above := name != t.disk.Path && strings.HasPrefix(t.disk.Path, name+"/"); above || t.disk.Directory && name == t.disk.Path {
		if header.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: /%s in the image is not a directory", oci.ErrFormat, name)
		}
		return nil
	}
	switch {
	case header.Typeflag == tar.TypeDir && t.disk.Directory:
		return nil
	case header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeGNUSparse:
		return fmt.Errorf("%w: /%s in the image is not a plain file", oci.ErrFormat, name)
	}
	if t.found = append(t.found, path.Base(name)); len(t.found) > 1 {
		if slices.Contains(t.found[:len(t.found)-1], path.Base(name)) {
			return fmt.Errorf("%w: two files /%s in one layer", oci.ErrFormat, name)
		}
		if len(t.found) > maxFound {
			return t.severalError()
		}
		return nil // more names, for the error
	}
	if err := t.u.checkName(t.bound.number, path.Base(name)); err != nil {
		return err
	}
	// Of a sparse entry, less than its size comes from the archive.
	t.other += min(header.Size, t.u.fileLimit())
	out := t.u.writer(t.file, 0, t.u.fileLimit(), t.bound)
	hash := digest.Canonical.Digester()
	if _, err := io.CopyBuffer(io.MultiWriter(hash.Hash(), out), readers.Only(content), make([]byte, readers.BufferSize)); err != nil {
		return tarError(err)
	}
	t.state = diskState{Name: path.Base(name), Size: out.Size(), Digest: hash.Digest()}
	return out.Finish()
}

// tarError: what tar says of a stream is about its content.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &decompress.DamagedError{Err: err}
	}
	return err
}

// A boundedReader fails, with [ErrHostile], instead of reading more than left.
type boundedReader struct {
	r    io.Reader
	left *int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if *b.left -= int64(n); *b.left < 0 {
		return 0, fmt.Errorf("%w: the layers unpack to more than is allowed beside a disk", oci.ErrHostile)
	}
	return n, err
}
