package disk

import (
	"fmt"
	"syscall"
)

// A Disk is one file of an image: complete, read-only, never written by a
// machine.
type Disk struct {
	// Name by which the image's domain XML calls the file.
	Name string
	// Path of the file on this host.
	Path string
	// Format is "qcow2" or "raw". QEMU is told, and never probes.
	Format string
	// Backing is the Name of the disk that backs this one; empty if none.
	Backing string
	// VirtualSize is the size that a guest sees, in bytes.
	VirtualSize int64
	CDROM       bool
}

// AllocatedBytes is what a file takes on the disk.
func AllocatedBytes(path string) (int64, error) {
	var stat syscall.Stat_t
	if err := syscall.Lstat(path, &stat); err != nil {
		return 0, fmt.Errorf("see how much %s takes: %w", path, err)
	}
	return stat.Blocks * 512, nil
}
