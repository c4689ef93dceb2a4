// Package packing lists the files of a machine's disks, backing files first, and reads them as an image has them.
package packing

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/chain"
	"gitlab-sardine-executor/oci/format"
)

// maxChain limits the length of a backing chain, which may be a loop.
const maxChain = 64

// A Disk is a disk file on this host: its backing files are opened by the paths in its header.
type Disk struct {
	Path string
	// Name in the image; empty means the base name of Path. Names must be unique.
	Name string
	// Format is "qcow2" or "raw"; empty means to detect it.
	Format string
	CDROM  bool
}

// A File is a file that is packed into an image.
type File struct {
	Path     string // absolute
	Name     string // in the image
	Format   string // "qcow2" or "raw"
	CDROM    bool
	Top      bool // a disk of the machine, not only a backing file
	Modified time.Time
	Size     int64 // in bytes
	Backing  *File // nil if it has none

	open Opener
}

// An Opener opens a file for reading, and returns its absolute path without symbolic links. It
// decides which files may be read.
type Opener func(path string) (*os.File, string, error)

// OpenTrusted is an [Opener] for what the administrator names: any regular file.
func OpenTrusted(path string) (*os.File, string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, "", err
	}
	f, _, err := fileutil.OpenRegular(path)
	return f, path, err
}

// List returns all files to pack, backing files first. A file that backs two disks is packed
// once.
func List(disks []Disk, open Opener) ([]File, error) {
	if len(disks) == 0 {
		return nil, errors.New("no disk to export")
	}
	p := packing{open: open, byPath: map[string]*File{}, names: map[string]bool{}}
	for _, disk := range disks {
		name, err := disk.name(len(p.files))
		if err != nil {
			return nil, err
		}
		if p.names[name] {
			return nil, fmt.Errorf("two disks are named %s: give them different names", name)
		}
		p.names[name] = true
	}
	for _, disk := range disks {
		if err := p.addTop(disk); err != nil {
			return nil, fmt.Errorf("disk %s: %w", disk.Path, err)
		}
	}
	if err := p.disambiguate(); err != nil {
		return nil, err
	}
	files := make([]File, len(p.files))
	for i, f := range p.files {
		files[i] = *f
	}
	return files, nil
}

// TotalSize returns the total size of the files in bytes.
func TotalSize(files []File) (sum int64) {
	for _, f := range files {
		sum += f.Size
	}
	return sum
}

type packing struct {
	open   Opener
	files  []*File
	byPath map[string]*File
	names  map[string]bool
}

func (p *packing) addTop(disk Disk) error {
	f, err := p.add(disk.Path, disk.Format, 0)
	if err != nil {
		return err
	}
	if f.Top {
		return errors.New("it is exported twice")
	}
	f.Top, f.CDROM = true, disk.CDROM
	f.Name, err = disk.name(0)
	return err
}

// name returns the name of disk i in the image.
func (d Disk) name(i int) (string, error) {
	if d.Name != "" {
		return chain.DiskName(d.Name, i)
	}
	return chain.DiskName(filepath.Base(d.Path), i)
}

// add appends a file after its backing files.
func (p *packing) add(path, diskFormat string, depth int) (*File, error) {
	if depth > maxChain {
		return nil, fmt.Errorf("a backing chain of more than %d files", maxChain)
	}
	file, path, err := p.open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if f, ok := p.byPath[path]; ok {
		return f, nil
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	f := &File{Path: path, Format: diskFormat, Modified: info.ModTime(), Size: info.Size(), open: p.open}
	header, err := exportHeader(file, &f.Format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if header != nil && header.BackingFile != "" {
		backing := header.BackingFile
		if !filepath.IsAbs(backing) {
			backing = filepath.Join(filepath.Dir(path), backing)
		}
		if f.Backing, err = p.add(backing, header.BackingFormat, depth+1); err != nil {
			return nil, fmt.Errorf("backing file of %s: %w", path, err)
		}
	}
	if depth > 0 {
		// The name of a backing file need not be valid in an image.
		name, err := chain.DiskName(filepath.Base(path), depth)
		if err != nil {
			name = "backing-file"
		}
		f.Name = p.freeName(name)
	}
	p.byPath[path] = f
	p.files = append(p.files, f)
	return f, nil
}

// disambiguate renames backing files with ambiguous names: see [chain.FindBacking].
func (p *packing) disambiguate() error {
	before := make([]oci.Disk, len(p.files))
	for i := 0; i < len(p.files); i++ {
		f := p.files[i]
		before[i].Name = f.Name
		if f.Backing == nil {
			continue
		}
		_, err := chain.FindBacking(before[:i], f.Name, f.Backing.Name, func(a, b *oci.Disk) bool { return false })
		if err == nil {
			continue
		}
		if f.Backing.Top {
			return fmt.Errorf("disk %s: its backing file %s is exported as a disk as well, with an ambiguous name: %w", f.Path, f.Backing.Path, err)
		}
		f.Backing.Name = p.freeName(f.Backing.Name)
		i = -1 // other files may refer to it
	}
	return nil
}

// exportHeader reads the header of a qcow2 file; it returns nil for raw files. It sets an
// empty diskFormat.
func exportHeader(file *os.File, diskFormat *string) (*qcow2.Header, error) {
	if *diskFormat == "raw" {
		return nil, nil
	}
	header, err := qcow2.ReadHeader(file)
	switch {
	case errors.Is(err, qcow2.ErrNotQCOW2) && *diskFormat == "":
		*diskFormat = "raw"
		return nil, nil
	case err != nil:
		return nil, err
	case *diskFormat != "" && *diskFormat != "qcow2":
		return nil, fmt.Errorf("format %q: want qcow2 or raw", *diskFormat)
	case header.ExternalData():
		return nil, errors.New("it keeps its content in an external data file; convert it with qemu-img convert first")
	}
	*diskFormat = "qcow2"
	return header, nil
}

// freeName returns an unused name for a backing file. It adds a number with an underscore:
// "-1" would be ambiguous, see [chain.FindBacking].
func (p *packing) freeName(name string) string {
	ext := filepath.Ext(name)
	free := name
	for i := 1; p.names[free]; i++ {
		free = fmt.Sprintf("%s_%d%s", strings.TrimSuffix(name, ext), i, ext)
	}
	p.names[free] = true
	return free
}

// MediaType returns the media type of the file, without "+gzip".
func (f File) MediaType() string {
	switch {
	case f.Format == "qcow2":
		return format.TypeQCOW2
	case f.CDROM:
		return format.TypeISO
	}
	return format.TypeRaw
}

// Kind returns the format of the file in the terms of package format.
func (f File) Kind() format.Content {
	switch {
	case f.Format == "qcow2":
		return format.QCOW2
	case f.CDROM:
		return format.ISO
	}
	return format.Raw
}

// Content is the content of a file in the image.
type Content struct {
	io.Reader
	io.Closer
	Size int64
}

// Open returns the content to pack: the header refers to the backing file by its name in the
// image.
func (f File) Open() (*Content, error) {
	file, _, err := f.open(f.Path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	content := &Content{Reader: file, Closer: file, Size: info.Size()}
	if f.Backing == nil {
		return content, nil
	}
	header, err := qcow2.ReadHeader(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	head := make(headerBytes, header.ClusterSize())
	if _, err = io.ReadFull(file, head); err == nil {
		err = qcow2.SetBackingFile(head, chain.BackingName(f.Backing.Name), f.Backing.Format)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	content.Reader = io.MultiReader(bytes.NewReader(head), file)
	return content, nil
}

// headerBytes is the first cluster of a qcow2 file, in memory.
type headerBytes []byte

func (h headerBytes) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(h).ReadAt(p, off)
}

func (h headerBytes) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(h)) {
		return 0, io.ErrShortWrite
	}
	return copy(h[off:], p), nil
}
