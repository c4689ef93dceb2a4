package domain

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/firmware"
)

// uefiDisk is a raw disk with an MBR that has an EFI system partition and no boot code.
func uefiDisk(t *testing.T) []disk.Disk {
	t.Helper()
	content := make([]byte, 1<<20)
	content[446+4], content[510], content[511] = 0xef, 0x55, 0xaa
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return []disk.Disk{{Name: "disk.raw", Path: path, Format: "raw", VirtualSize: int64(len(content))}}
}

const ownXML = `<domain type='kvm'><memory unit='GiB'>1</memory><os firmware='efi'><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='disk.raw'/><target dev='vda' bus='virtio'/></disk>
<interface type='network'><source network='default'/></interface></devices></domain>`

func TestFirmwareOfMachines(t *testing.T) {
	disks := uefiDisk(t)
	for _, c := range []struct {
		name, kind, doc string
		arch            string
		want            string // firmware and features
	}{
		{"a disk for UEFI", "", "", "", "efi secure-boot=no"},
		{"the same, explicitly", firmware.UEFI, "", "", "efi secure-boot=no"},
		{"BIOS, although the disk has none", firmware.BIOS, "", "", ""},
		{"signed only", firmware.Secure, "", "", "efi secure-boot=yes enrolled-keys=yes"},
		{"arm64 has UEFI alone", "", "", "arm64", "efi secure-boot=no"},
		{"the image's own", firmware.Auto, ownXML, "", "efi secure-boot=no"},
		{"BIOS instead of the image's own", firmware.BIOS, ownXML, "", ""},
		{"signed only instead of the image's own", firmware.Secure, ownXML, "", "efi secure-boot=yes enrolled-keys=yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			source := Source{Disks: disks, Firmware: c.kind, Architecture: c.arch}
			if c.doc != "" {
				source.DomainXML = []byte(c.doc)
			}
			result, notes, err := Build(source)
			if err != nil {
				t.Fatal(err)
			}
			got := result.Domain.OS.Firmware
			if info := result.Domain.OS.FirmwareInfo; info != nil {
				for _, f := range info.Features {
					got += " " + f.Name + "=" + f.Enabled
				}
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			looked := c.kind == "" && c.doc == "" && c.arch == ""
			if (len(notes) == 1 && strings.Contains(notes[0], "boots by UEFI: disk disk.raw has an MBR")) != looked {
				t.Errorf("notes %q", notes)
			}
		})
	}
	for _, source := range []Source{
		{Disks: disks, Firmware: firmware.BIOS, Architecture: "arm64"},
		{Disks: disks, Firmware: firmware.Secure, Architecture: "arm64"},
		{Disks: disks, Firmware: "efi"},
	} {
		if _, _, err := Build(source); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), source.Firmware) {
			t.Errorf("%s on %s: %v", source.Firmware, source.Architecture, err)
		}
	}
}

// An image without domain XML that boots nothing is refused before a machine starts, and
// not judged before its disks are there.
func TestDiskThatBootsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	source := Source{Disks: []disk.Disk{{Name: "disk.raw", Path: path, Format: "raw"}}}
	if _, _, err := Build(source); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "disk.raw has neither a boot sector nor a partition table") {
		t.Errorf("got %v", err)
	}
	source.Firmware = firmware.UEFI
	if _, _, err := Build(source); err != nil {
		t.Errorf("with a firmware that the administrator chose: %v", err)
	}
	source = Source{Disks: []disk.Disk{{Name: "disk.raw", Format: "raw"}}}
	if err := Check(source, nil); err != nil {
		t.Errorf("before the pull: %v", err)
	}
}
