package unpack

import (
	"fmt"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/chain"
	"gitlab-sardine-executor/oci/format"
)

// CheckPlan refuses images by their manifest alone. It does not check free space, which may
// change.
func CheckPlan(plan *format.Plan, maxDisk int64) error {
	if len(plan.Disks) > maxDisks {
		return fmt.Errorf("%w: %d disks, at most %d are accepted", oci.ErrInvalid, len(plan.Disks), maxDisks)
	}
	for i, disk := range plan.Disks {
		if disk.Name != "" {
			if _, err := chain.DiskName(disk.Name, i); err != nil {
				return err
			}
		}
		one := format.Plan{Disks: []format.Disk{disk}}
		if size := one.TransferSize(); disk.ContainerDisk == nil && size > fileLimit(maxDisk) {
			return fmt.Errorf("%w: the layers of disk %d have %d bytes, a disk at most %d (max_disk)", oci.ErrInvalid, i, size, maxDisk)
		}
		if disk.Size > fileLimit(maxDisk) {
			return fmt.Errorf("%w: disk %d has %d bytes, at most %d are allowed (max_disk)", oci.ErrInvalid, i, disk.Size, maxDisk)
		}
	}
	return nil
}

// checkName checks the name that a disk has in its layers, unless the manifest has one.
func (u *unpacker) checkName(number int, name string) error {
	if u.plan.Disks[number].Name != "" {
		return nil
	}
	_, err := chain.DiskName(name, number)
	return err
}
