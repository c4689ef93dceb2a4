package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ChownToRoot makes root the owner of the disks of an image again. The system
// daemon gives every file of a backing chain to the user that QEMU runs as and
// does not take the shared ones back: a guest that broke out of its QEMU could
// make them writable, and the next job would run on what it wrote. It is called
// when QEMU holds them open.
func ChownToRoot(disks []Disk) error {
	if os.Geteuid() != 0 {
		return nil // nobody could give them away, either
	}
	var failed []error
	for _, d := range disks {
		if err := os.Lchown(d.Path, 0, 0); err != nil {
			failed = append(failed, fmt.Errorf("take disk %s back from QEMU's user: %w", d.Name, err))
		}
	}
	return errors.Join(failed...)
}

// ChownDirToRoot is [ChownToRoot] for all files in a directory.
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

// Owners are those of files before somebody else's machine was started on them:
// user and group by path.
type Owners map[string][2]int

// OwnersOf notes the owners of disks that a clone will stand on; nothing if this
// process could not give them back anyway.
func OwnersOf(disks []Disk) Owners {
	before := make(Owners)
	if os.Geteuid() != 0 {
		return before
	}
	for _, d := range disks {
		info, err := os.Stat(d.Path)
		if err != nil {
			continue // QEMU will say it better
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			before[d.Path] = [2]int{int(stat.Uid), int(stat.Gid)}
		}
	}
	return before
}

// Restore gives the files back to their owners: see ChownToRoot. QEMU holds them
// open.
func (o Owners) Restore() error {
	var failed []error
	for path, owner := range o {
		if err := os.Chown(path, owner[0], owner[1]); err != nil {
			failed = append(failed, fmt.Errorf("give %s back to its owner: %w", path, err))
		}
	}
	return errors.Join(failed...)
}
