package domain

import (
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/firmware"
)

// setFirmware replaces the firmware of a domain; auto and empty keep it. libvirt chooses the
// files of UEFI from those that the host has.
func setFirmware(d *libvirtxml.Domain, kind string) error {
	arch := d.OS.Type.Arch
	switch kind {
	case "", firmware.Auto:
		return nil
	case firmware.BIOS:
		if arch != "x86_64" && arch != "i686" {
			return fmt.Errorf("%w: firmware is %q, and a machine of the architecture %s has none", errdefs.ErrInvalid, kind, arch)
		}
		d.OS.Firmware, d.OS.FirmwareInfo, d.OS.Loader, d.OS.NVRam = "", nil, nil, nil
	case firmware.UEFI:
		d.OS.Firmware, d.OS.FirmwareInfo, d.OS.Loader, d.OS.NVRam = "efi", nil, nil, nil
	case firmware.Secure:
		if d.OS.Type.Machine != "q35" && !strings.Contains(d.OS.Type.Machine, "-q35-") {
			return fmt.Errorf("%w: firmware is %q, which needs a machine of type q35, and this one is %s", errdefs.ErrInvalid, kind, d.OS.Type.Machine)
		}
		d.OS.Firmware, d.OS.Loader, d.OS.NVRam = "efi", nil, nil
		d.OS.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{
			{Name: "secure-boot", Enabled: "yes"}, {Name: "enrolled-keys", Enabled: "yes"},
		}}
	default:
		return fmt.Errorf("%w: firmware is %q: want %s", errdefs.ErrInvalid, kind, strings.Join(firmware.Kinds, ", "))
	}
	return nil
}

// withoutSecureBoot prevents libvirt from choosing firmware that only boots what is signed
// with Microsoft's keys, unless the image asks for it. Debian's libvirt prefers that
// firmware, and an unsigned guest would never start.
func withoutSecureBoot(system *libvirtxml.DomainOS) {
	if system.Firmware != "efi" || (system.Loader != nil && system.Loader.Secure == "yes") {
		return
	}
	info := system.FirmwareInfo
	if info == nil {
		info = &libvirtxml.DomainOSFirmwareInfo{}
	}
	for _, f := range info.Features {
		if f.Name == "secure-boot" || f.Name == "enrolled-keys" && f.Enabled == "yes" {
			return
		}
	}
	info.Features = append(info.Features, libvirtxml.DomainOSFirmwareFeature{Name: "secure-boot", Enabled: "no"})
	system.FirmwareInfo = info
}

// Explain adds to err, with which the domain did not start, what is wrong with the host, if
// libvirt and QEMU do not say it: QEMU, which runs as that user, cannot enter a directory, or
// there is no UEFI.
func Explain(err error, d *libvirtxml.Domain, overlays string, disks []disk.Disk, uid, gid int) error {
	if blocked := disk.Blocked(overlays, disks, uid, gid); blocked != nil {
		return fmt.Errorf("%w: %w", blocked, err)
	}
	return firmware.Explain(err, d.OS.Type.Arch)
}
