// Package firmware decides whether a machine boots by BIOS or by UEFI.
package firmware

import (
	"fmt"
	"slices"
	"strings"

	"gitlab-sardine-executor/internal/bootdisk"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
)

// The kinds of firmware, as in the setting firmware.
const (
	Auto   = "auto" // what the disk needs
	BIOS   = "bios"
	UEFI   = "uefi"
	Secure = "uefi-secure" // UEFI that boots only what is signed with Microsoft's keys
)

// Kinds are all kinds of firmware.
var Kinds = []string{Auto, BIOS, UEFI, Secure}

// Choose returns the firmware for a machine with these disks, [BIOS] or [UEFI], and why: the
// first disk that can boot decides, and BIOS wins if it can boot by both. If a disk cannot be
// read, the machine gets BIOS, and note says why. The error is an [errdefs.ErrInvalid] if
// none of the disks can boot.
func Choose(disks []disk.Disk) (kind, note string, err error) {
	var found []string
	drive := false
	for _, d := range disk.TopDisks(disks) {
		if d.CDROM {
			drive = true
			continue
		}
		boots, err := lookAt(d, disks)
		switch {
		case err != nil:
			return BIOS, fmt.Sprintf("boots by BIOS: what disk %s needs is not known: %v", d.Name, err), nil
		case boots.BIOS:
			return BIOS, "", nil
		case boots.UEFI:
			return UEFI, fmt.Sprintf("boots by UEFI: disk %s has %s", d.Name, boots.Found), nil
		}
		found = append(found, fmt.Sprintf("%s has %s", d.Name, boots.Found))
	}
	if drive || len(found) == 0 {
		return BIOS, "", nil
	}
	return "", "", fmt.Errorf("%w: no disk of it can boot: %s (is it a disk of an operating system, and complete? firmware = %q or %q starts it anyway)",
		errdefs.ErrInvalid, strings.Join(found, "; "), BIOS, UEFI)
}

// lookAt looks at a disk and its backing files.
func lookAt(d disk.Disk, disks []disk.Disk) (bootdisk.Boots, error) {
	chain := []bootdisk.File{{Path: d.Path, Format: d.Format}}
	for d.Backing != "" && len(chain) <= len(disks) {
		i := slices.IndexFunc(disks, func(other disk.Disk) bool { return other.Name == d.Backing })
		if i < 0 {
			return bootdisk.Boots{}, fmt.Errorf("its backing file %s is not in the image", d.Backing)
		}
		d = disks[i]
		chain = append(chain, bootdisk.File{Path: d.Path, Format: d.Format})
	}
	return bootdisk.LookAt(chain)
}
