package vm

import (
	"errors"
	"fmt"
	"os"
)

// takeBack makes root the owner of the disks of an image again. The system
// daemon gives every file of a backing chain to the user that QEMU runs as and
// does not take the shared ones back: a guest that broke out of its QEMU could
// make them writable, and the next job would run on what it wrote. It is called
// when QEMU holds them open.
func takeBack(disks []Disk) error {
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
