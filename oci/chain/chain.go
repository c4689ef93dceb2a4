package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/readers"
)

// NameDisks gives each unpacked disk the name that its image gives it.
func NameDisks(dir string, disks []oci.Disk) error {
	taken := map[string]int{}
	for i := range disks {
		name, err := DiskName(disks[i].Name, i)
		if err != nil {
			return err
		}
		if other, ok := taken[name]; ok {
			if err := sameDisk(dir, disks, other, i, Unnamed(i)); err != nil {
				return err
			}
			disks[i].Name = name
			continue
		}
		taken[name] = i
		disks[i].Name = name
		if err := os.Rename(filepath.Join(dir, Unnamed(i)), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("naming disk %d: %w", i, err)
		}
	}
	return nil
}

// sameDisk removes the file of disk i, if it is in every way disk first once more: a
// machine with two overlays on one base is packed like that.
func sameDisk(dir string, disks []oci.Disk, first, i int, file string) error {
	a, b := disks[first], disks[i]
	if a.Format == b.Format && a.CDROM == b.CDROM {
		same, err := sameContent(filepath.Join(dir, a.Name), filepath.Join(dir, file))
		if err != nil {
			return fmt.Errorf("comparing disks %d and %d: %w", first, i, err)
		}
		if same {
			return os.Remove(filepath.Join(dir, file))
		}
	}
	return fmt.Errorf("%w: disks %d and %d are both called %q, and differ", oci.ErrFormat, first, i, a.Name)
}

// WithoutRepeated leaves out what has the name of a disk before it.
func WithoutRepeated(disks []oci.Disk) []oci.Disk {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(disks), func(d oci.Disk) bool {
		repeated := seen[d.Name]
		seen[d.Name] = true
		return repeated
	})
}

// sameContent compares two files byte by byte.
func sameContent(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	one, two := make([]byte, readers.BufferSize), make([]byte, readers.BufferSize)
	for {
		n, err := io.ReadFull(f, one)
		m, err2 := io.ReadFull(g, two)
		if !bytes.Equal(one[:n], two[:m]) {
			return false, nil
		}
		if ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); ended || err != nil {
			if ended && (errors.Is(err2, io.EOF) || errors.Is(err2, io.ErrUnexpectedEOF)) {
				return true, nil
			}
			return false, errors.Join(ignoreEOF(err), ignoreEOF(err2))
		}
	}
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// DiskName reduces a name that an image gives to a file name in the image's
// directory.
func DiskName(name string, i int) (string, error) {
	if name == "" {
		return fmt.Sprintf("disk-%d", i), nil
	}
	base := name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case base == "" || base[0] == '.', len(base) > 255, !utf8.ValidString(base), strings.ContainsFunc(base, unicode.IsControl):
		return "", fmt.Errorf("%w: disk %d is called %q", oci.ErrHostile, i, name)
	case base == oci.ImageFile || base == oci.DomainFile || base == oci.PieceFile:
		return "", fmt.Errorf("%w: disk %d is called %q, which is a name of the store", oci.ErrFormat, i, name)
	}
	return base, nil
}

// CheckDisks reads the header of every qcow2 disk before anything else opens it,
// and makes its backing file one of this image: it sets Backing and VirtualSize.
func CheckDisks(dir string, disks []oci.Disk, maxDisk int64) error {
	for i := range disks {
		if disks[i].Format == "qcow2" {
			if err := checkQCOW2(dir, disks, i); err != nil {
				return err
			}
		}
		if disks[i].VirtualSize > maxDisk {
			return fmt.Errorf("%w: disk %s has %d bytes, at most %d are allowed (max_disk)", oci.ErrHostile, disks[i].Name, disks[i].VirtualSize, maxDisk)
		}
	}
	return nil
}

func checkQCOW2(dir string, disks []oci.Disk, i int) (err error) {
	disk := &disks[i]
	f, err := os.OpenFile(filepath.Join(dir, disk.Name), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("checking disk %s: %w", disk.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return fmt.Errorf("%w: disk %s: %w", oci.ErrHostile, disk.Name, err)
	}
	if err := CheckHeader(h); err != nil {
		return fmt.Errorf("disk %s: %w", disk.Name, err)
	}
	if h.Bitmaps() { // which no machine needs
		if err := qcow2.DropBitmaps(f); err != nil {
			return fmt.Errorf("%w: disk %s: %w", oci.ErrFormat, disk.Name, err)
		}
	}
	disk.VirtualSize = h.VirtualSize
	if h.BackingFile == "" {
		return nil
	}
	backing, err := FindBacking(disks[:i], disk.Name, h.BackingFile, func(a, b *oci.Disk) bool { return isSameBase(dir, a, b) })
	if err != nil {
		return err
	}
	disk.Backing = backing.Name
	name := BackingName(backing.Name)
	if h.BackingFile == name && h.BackingFormat == backing.Format {
		return nil
	}
	if err := qcow2.SetBackingFile(f, name, backing.Format); err != nil {
		return fmt.Errorf("%w: disk %s: %w", oci.ErrFormat, disk.Name, err)
	}
	return nil
}

// CheckHeader refuses disks of which this file is not the whole, or that QEMU would
// not open.
func CheckHeader(h *qcow2.Header) error {
	switch {
	case h.ExternalData():
		return fmt.Errorf("%w: it keeps its content in another file (%q)", oci.ErrHostile, h.DataFile)
	case h.Encryption != qcow2.EncryptionNone:
		return fmt.Errorf("%w: it is encrypted", oci.ErrFormat)
	case h.Incompatible&qcow2.IncompatibleCorrupt != 0:
		return fmt.Errorf("%w: it is marked as corrupt by QEMU", oci.ErrFormat)
	}
	return nil
}

// BackingName is how a qcow2 header names a file in its own directory: QEMU
// would take "a:b" for a protocol.
func BackingName(name string) string {
	if strings.Contains(name, ":") {
		return "./" + name
	}
	return name
}

// FindBacking finds the disk that a backing name means among those that come
// before the one that needs it. Only the last element of the name counts: the
// directory was one of the machine that packed the image.
//
// That machine may have had two files of that name in two directories. The
// Python tool then packs the second as name-1 and leaves the headers alone, so
// that nothing says which of the two is meant. Taking the wrong one gives a disk
// of garbage, so such an image is refused, unless same says that it is no matter.
func FindBacking(before []oci.Disk, disk, backing string, same func(a, b *oci.Disk) bool) (*oci.Disk, error) {
	want := path.Base(backing)
	var found []*oci.Disk
	for i := range before {
		if before[i].Name == want || before[i].Alias == want || isRenamed(before[i].Name, want) {
			found = append(found, &before[i])
		}
	}
	exact := slices.IndexFunc(found, func(d *oci.Disk) bool { return d.Name == want || d.Alias == want })
	differs := func(d *oci.Disk) bool { return d != found[exact] && !same(found[exact], d) }
	switch {
	case exact >= 0 && !slices.ContainsFunc(found, differs):
		return found[exact], nil
	case len(found) > 1:
		var names []string
		for _, d := range found {
			names = append(names, d.Name)
		}
		return nil, fmt.Errorf("%w: disk %s needs a backing file %s; the image does not say which of %s that is: export it again", oci.ErrFormat, disk, want, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%w: disk %s has the backing file %q, which is not a disk of the image before it", oci.ErrHostile, disk, backing)
}

// isSameBase: whichever of the two a disk stands on, it has the same content. A file
// that cannot be read is the same as none.
func isSameBase(dir string, a, b *oci.Disk) bool {
	if a.Format != b.Format || a.Backing != b.Backing || a.Size != b.Size {
		return false
	}
	same, err := sameContent(filepath.Join(dir, a.Name), filepath.Join(dir, b.Name))
	return same && err == nil
}

var renamedSuffix = regexp.MustCompile(`-[0-9]+$`)

// isRenamed: "disk-1.qcow2" is what "disk.qcow2" becomes where that is taken.
func isRenamed(name, original string) bool {
	ext := path.Ext(original)
	stem, ok := strings.CutSuffix(name, ext)
	return ok && renamedSuffix.ReplaceAllString(stem, "") == strings.TrimSuffix(original, ext) && name != original
}

// Unnamed is the file of disk i until every disk has the name that its image gives it.
func Unnamed(i int) string { return fmt.Sprintf(".disk-%d", i) }
