package oci

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"gitlab-sardine-executor/internal/qcow2"
)

// nameDisks gives each unpacked disk the name that its image gives it.
func nameDisks(dir string, disks []Disk) error {
	taken := map[string]int{}
	for i := range disks {
		name, err := diskName(disks[i].Name, i)
		if err != nil {
			return err
		}
		if other, ok := taken[name]; ok {
			return fmt.Errorf("%w: disks %d and %d are both called %q", ErrFormat, other, i, name)
		}
		taken[name] = i
		disks[i].Name = name
		if err := os.Rename(filepath.Join(dir, unnamed(i)), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("naming disk %d: %w", i, err)
		}
	}
	return nil
}

// diskName reduces a name that an image gives to a file name in the image's
// directory.
func diskName(name string, i int) (string, error) {
	if name == "" {
		return fmt.Sprintf("disk-%d", i), nil
	}
	base := name[strings.LastIndexByte(name, '/')+1:]
	switch {
	case base == "" || base[0] == '.', len(base) > 255, !utf8.ValidString(base), strings.ContainsFunc(base, unicode.IsControl):
		return "", fmt.Errorf("%w: disk %d is called %q", ErrHostile, i, name)
	case base == imageFile || base == domainFile || base == pieceFile:
		return "", fmt.Errorf("%w: disk %d is called %q, which is a name of the store", ErrFormat, i, name)
	}
	return base, nil
}

// checkDisks reads the header of every qcow2 disk before anything else opens it,
// and makes its backing file one of this image: it sets Backing and VirtualSize.
func checkDisks(dir string, disks []Disk, maxDisk int64) error {
	for i := range disks {
		if disks[i].Format == "qcow2" {
			if err := checkQCOW2(dir, disks, i); err != nil {
				return err
			}
		}
		if disks[i].VirtualSize > maxDisk {
			return fmt.Errorf("%w: disk %s has %d bytes, at most %d are allowed (max_disk)", ErrHostile, disks[i].Name, disks[i].VirtualSize, maxDisk)
		}
	}
	return nil
}

func checkQCOW2(dir string, disks []Disk, i int) (err error) {
	disk := &disks[i]
	f, err := os.OpenFile(filepath.Join(dir, disk.Name), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("checking disk %s: %w", disk.Name, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h, err := qcow2.ReadHeader(f)
	switch {
	case err != nil:
		return fmt.Errorf("%w: disk %s: %w", ErrHostile, disk.Name, err)
	case h.ExternalData():
		return fmt.Errorf("%w: disk %s keeps its content in another file (%q)", ErrHostile, disk.Name, h.DataFile)
	case h.Encryption != qcow2.EncryptionNone:
		return fmt.Errorf("%w: disk %s is encrypted", ErrFormat, disk.Name)
	case h.Incompatible&qcow2.IncompatibleCorrupt != 0:
		return fmt.Errorf("%w: disk %s is marked as corrupt by QEMU", ErrFormat, disk.Name)
	}
	if h.Bitmaps() { // which no machine needs
		if err := qcow2.DropBitmaps(f); err != nil {
			return fmt.Errorf("%w: disk %s: %w", ErrFormat, disk.Name, err)
		}
	}
	disk.VirtualSize = h.VirtualSize
	if h.BackingFile == "" {
		return nil
	}
	backing, err := findBacking(disks[:i], disk.Name, h.BackingFile)
	if err != nil {
		return err
	}
	disk.Backing = backing.Name
	name := backingName(backing.Name)
	if h.BackingFile == name && h.BackingFormat == backing.Format {
		return nil
	}
	if err := qcow2.SetBackingFile(f, name, backing.Format); err != nil {
		return fmt.Errorf("%w: disk %s: %w", ErrFormat, disk.Name, err)
	}
	return nil
}

// backingName is how a qcow2 header names a file in its own directory: QEMU
// would take "a:b" for a protocol.
func backingName(name string) string {
	if strings.Contains(name, ":") {
		return "./" + name
	}
	return name
}

// findBacking finds the disk that a backing name means among those that come
// before the one that needs it. Only the last element of the name counts: the
// directory was one of the machine that packed the image.
//
// That machine may have had two files of that name in two directories. The
// Python tool then packs the second as name-1 and leaves the headers alone, so
// that nothing says which of the two is meant. Taking the wrong one gives a disk
// of garbage, so such an image is refused.
func findBacking(before []Disk, disk, backing string) (*Disk, error) {
	want := path.Base(backing)
	var found []*Disk
	for i := range before {
		if before[i].Name == want || before[i].alias == want || isRenamed(before[i].Name, want) {
			found = append(found, &before[i])
		}
	}
	switch {
	case len(found) == 1 && (found[0].Name == want || found[0].alias == want):
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, d := range found {
			names = append(names, d.Name)
		}
		return nil, fmt.Errorf("%w: disk %s needs a backing file %s; the image does not say which of %s that is: export it again", ErrFormat, disk, want, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%w: disk %s has the backing file %q, which is not a disk of the image before it", ErrHostile, disk, backing)
}

var renamedSuffix = regexp.MustCompile(`-[0-9]+$`)

// isRenamed: "disk-1.qcow2" is what "disk.qcow2" becomes where that is taken.
func isRenamed(name, original string) bool {
	ext := path.Ext(original)
	stem, ok := strings.CutSuffix(name, ext)
	return ok && renamedSuffix.ReplaceAllString(stem, "") == strings.TrimSuffix(original, ext) && name != original
}
