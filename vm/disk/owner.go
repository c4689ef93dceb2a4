package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ChownToRoot makes root the owner of the disks of an image again, after QEMU has opened
// them. The system daemon makes the user of QEMU the owner of each file of a backing chain,
// and does not restore the owner of shared files: a guest that broke out of its QEMU could
// make them writable and change them for the next job. Without root it does nothing.
func ChownToRoot(disks []Disk) error {
	if os.Geteuid() != 0 {
		return nil // this user cannot change owners
	}
	var failed []error
	for _, d := range disks {
		if err := os.Lchown(d.Path, 0, 0); err != nil {
			failed = append(failed, fmt.Errorf("make root the owner of disk %s again: %w", d.Name, err))
		}
	}
	return errors.Join(failed...)
}

// ChownDirToRoot is [ChownToRoot] for the files in a directory.
func ChownDirToRoot(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	disks := make([]Disk, len(entries))
	for i, entry := range entries {
		disks[i] = Disk{Name: entry.Name(), Path: filepath.Join(dir, entry.Name())}
	}
	return ChownToRoot(disks)
}

// Owners holds the user and the group of files, by path.
type Owners map[string][2]int

// OwnersOf returns the owners of disks; none if this user cannot change them anyway.
func OwnersOf(disks []Disk) Owners {
	before := make(Owners)
	if os.Geteuid() != 0 {
		return before
	}
	for _, d := range disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			continue // QEMU reports a better error
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			before[d.Path] = [2]int{int(stat.Uid), int(stat.Gid)}
		}
	}
	return before
}

// Restore restores the owners, after QEMU has opened the files: see [ChownToRoot].
func (o Owners) Restore() error {
	var failed []error
	for path, owner := range o {
		if err := os.Chown(path, owner[0], owner[1]); err != nil {
			failed = append(failed, fmt.Errorf("restore the owner of %s: %w", path, err))
		}
	}
	return errors.Join(failed...)
}
