package containerdisk

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/unpack/decompress"
)

const (
	// maxLayerEntries limits the files in all layers of an image.
	maxLayerEntries = 1_000_000
	// maxFound limits the names in an error.
	maxFound = 10
)

const (
	whiteout       = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// A Finder finds the disk in the layers of a container image. It reads them from the top: files
// and whiteouts of upper layers hide files in lower layers.
type Finder struct {
	disk *format.ContainerDisk
	// write writes the disk.
	write func(name string, size int64, content io.Reader) error

	hidden map[string]bool // paths hidden in lower layers
	opaque map[string]bool // directories with hidden content in lower layers
	found  []string        // paths of files that could be the disk
	// links are the symbolic and hard links that could be the disk: their paths and targets.
	links map[string]string
	// atRoot are the files in the root with the names of disks, if the disk's directory is
	// another one.
	atRoot  []string
	entries int
}

// New returns a Finder of the disk at a place. It calls write at most once, with the base name
// and the size of the file that seems to be the disk; [Finder.Next] says whether it is.
func New(disk *format.ContainerDisk, write func(name string, size int64, content io.Reader) error) *Finder {
	return &Finder{disk: disk, write: write, hidden: map[string]bool{}, opaque: map[string]bool{}, links: map[string]string{}}
}

// Read reads the next lower layer, a tar archive, to its end.
func (l *Finder) Read(r io.Reader) error {
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
func (l *Finder) concerns(name string) bool {
	dir, base := path.Split(name)
	if base == opaqueWhiteout {
		dir = strings.TrimSuffix(dir, "/")
		return dir == "" || dir == l.disk.Path || strings.HasPrefix(l.disk.Path, dir+"/")
	}
	name = path.Join(dir, strings.TrimPrefix(base, whiteout))
	return name == l.disk.Path || strings.HasPrefix(l.disk.Path, name+"/") || l.isInside(name) || l.isAtRoot(name)
}

// isInside reports whether a path is directly in the disk's directory.
func (l *Finder) isInside(name string) bool {
	dir, base := path.Split(name)
	return l.disk.Directory && base != "" && strings.TrimSuffix(dir, "/") == l.disk.Path
}

// isAtRoot reports whether a file in the root could be the disk of an image without one in
// the disk's directory.
func (l *Finder) isAtRoot(name string) bool {
	return l.disk.Directory && !l.disk.NamedDisk && !strings.Contains(name, "/") && format.IsDiskName(name)
}

// isHidden reports whether an upper layer hides a path.
func (l *Finder) isHidden(name string) bool {
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
func (l *Finder) extract(content io.Reader, header *tar.Header, name string) error {
	if above := name != l.disk.Path && strings.HasPrefix(l.disk.Path, name+"/"); above || l.disk.Directory && name == l.disk.Path {
		if header.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: /%s in the image is not a directory", oci.ErrFormat, name)
		}
		return nil
	}
	switch {
	case header.Typeflag == tar.TypeDir && l.disk.Directory:
		return nil
	case l.disk.NamedDisk && !format.IsDiskName(name):
		return nil
	case l.isAtRoot(name) && !l.isInside(name):
		if len(l.atRoot) <= maxFound {
			l.atRoot = append(l.atRoot, name)
		}
		return nil
	case header.Typeflag == tar.TypeSymlink || header.Typeflag == tar.TypeLink:
		return l.addLink(header, name)
	case header.Typeflag != tar.TypeReg && header.Typeflag != tar.TypeGNUSparse && header.Typeflag != tar.TypeCont:
		return fmt.Errorf("%w: /%s in the image is not a regular file", oci.ErrFormat, name)
	}
	if l.found = append(l.found, name); len(l.found) > 1 {
		if slices.Contains(l.found[:len(l.found)-1], name) {
			return fmt.Errorf("%w: two files /%s in one layer", oci.ErrFormat, name)
		}
		if len(l.found) > maxFound {
			return l.severalError(nil)
		}
		return nil // more names, for the error
	}
	return tarError(l.write(path.Base(name), header.Size, content))
}

// addLink notes a link that could be the disk. Its target is a path in the image, and never one
// on the host.
func (l *Finder) addLink(header *tar.Header, name string) error {
	target := header.Linkname
	if header.Typeflag == tar.TypeSymlink && !path.IsAbs(target) {
		target = path.Join("/", path.Dir(name), target)
	}
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	if target == "" || target == name {
		return fmt.Errorf("%w: /%s in the image is a link to /%s", oci.ErrFormat, name, target)
	}
	if l.links[name] = target; len(l.links) > maxFound {
		return l.severalError(slices.Sorted(maps.Keys(l.links)))
	}
	return nil
}

// tarError marks errors of the archive as damaged content.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &decompress.DamagedError{Err: err}
	}
	return err
}
