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

// NameDisks renames each unpacked disk to its name in the image.
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

// sameDisk removes the file of disk i if it duplicates disk first: some tools pack the base
// of two overlays twice.
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

// WithoutRepeated removes disks that have the name of an earlier disk.
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

// DiskName returns the file name for disk i that an image calls name: its base name.
func DiskName(name string, i int) (string, error) {
	if name == "" {
		return fmt.Sprintf("disk-%d", i), nil
	}
	base := name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case base == "" || base[0] == '.', len(base) > 255, !utf8.ValidString(base), strings.ContainsFunc(base, unicode.IsControl):
		return "", fmt.Errorf("%w: disk %d is called %q", oci.ErrInvalid, i, name)
	case base == oci.ImageFile || base == oci.DomainFile || base == oci.ChunkFile:
		return "", fmt.Errorf("%w: disk %d is called %q, which is a name of the store", oci.ErrFormat, i, name)
	}
	return base, nil
}

// CheckDisks checks the header of every qcow2 disk before any other program opens it. It
// sets Backing and VirtualSize, and makes the header name a file of this image.
func CheckDisks(dir string, disks []oci.Disk, maxDisk int64) error {
	for i := range disks {
		if disks[i].Format == "qcow2" {
			if err := checkQCOW2(dir, disks, i); err != nil {
				return err
			}
		}
		if disks[i].VirtualSize > maxDisk {
			return fmt.Errorf("%w: disk %s has %d bytes, at most %d are allowed (max_disk)", oci.ErrInvalid, disks[i].Name, disks[i].VirtualSize, maxDisk)
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
		return fmt.Errorf("%w: disk %s: %w", oci.ErrInvalid, disk.Name, err)
	}
	if err := CheckHeader(h); err != nil {
		return fmt.Errorf("disk %s: %w", disk.Name, err)
	}
	if h.Bitmaps() { // no machine needs them
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

// CheckHeader refuses disks with data outside this file, and disks that QEMU cannot open.
func CheckHeader(h *qcow2.Header) error {
	switch {
	case h.ExternalData():
		return fmt.Errorf("%w: it keeps its content in another file (%q)", oci.ErrInvalid, h.DataFile)
	case h.Encryption != qcow2.EncryptionNone:
		return fmt.Errorf("%w: it is encrypted", oci.ErrFormat)
	case h.Incompatible&qcow2.IncompatibleCorrupt != 0:
		return fmt.Errorf("%w: it is marked as corrupt by QEMU", oci.ErrFormat)
	}
	return nil
}

// BackingName returns the name that a qcow2 header must use for a file in its directory:
// QEMU would read "a:b" as a protocol.
func BackingName(name string) string {
	if strings.Contains(name, ":") {
		return "./" + name
	}
	return name
}

// FindBacking finds the disk that a backing file name refers to, among the disks before the
// one that needs it. Only the base name counts: the directory belongs to the machine that
// packed the image.
//
// That machine may have had two files of this name in two directories. The Python tool then
// packs the second as name-1 and does not change the headers, so the reference is ambiguous.
// The wrong choice would give a corrupt disk, so FindBacking returns an error unless same
// says that the candidates are equal.
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
	return nil, fmt.Errorf("%w: disk %s has the backing file %q, which is not a disk of the image before it", oci.ErrInvalid, disk, backing)
}

// isSameBase reports whether two disks are equal, so that either can back another disk. A
// file that cannot be read equals no other.
func isSameBase(dir string, a, b *oci.Disk) bool {
	if a.Format != b.Format || a.Backing != b.Backing || a.Size != b.Size {
		return false
	}
	same, err := sameContent(filepath.Join(dir, a.Name), filepath.Join(dir, b.Name))
	return same && err == nil
}

var renamedSuffix = regexp.MustCompile(`-[0-9]+$`)

// isRenamed reports whether name is what the Python tool makes of original if that is taken:
// "disk-1.qcow2" of "disk.qcow2".
func isRenamed(name, original string) bool {
	ext := path.Ext(original)
	stem, ok := strings.CutSuffix(name, ext)
	return ok && renamedSuffix.ReplaceAllString(stem, "") == strings.TrimSuffix(original, ext) && name != original
}

// Unnamed returns the file name of disk i until [NameDisks] renames it.
func Unnamed(i int) string { return fmt.Sprintf(".disk-%d", i) }
