package firmware

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
)

// forUEFI is a disk with an MBR that has an EFI system partition and no boot code.
func forUEFI() []byte {
	disk := make([]byte, 1<<20)
	disk[446+4], disk[510], disk[511] = 0xef, 0x55, 0xaa
	return disk
}

// forBoth is the same with boot code.
func forBoth() []byte {
	disk := forUEFI()
	disk[0] = 0xeb
	return disk
}

// write puts disks into files, as qcow2 where the name says so.
func write(t *testing.T, dir, name string, content []byte) disk.Disk {
	t.Helper()
	d := disk.Disk{Name: name, Path: filepath.Join(dir, name), Format: "raw"}
	if err := os.WriteFile(d.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".qcow2") {
		if out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", d.Path, d.Path+".tmp").CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		if err := os.Rename(d.Path+".tmp", d.Path); err != nil {
			t.Fatal(err)
		}
		d.Format = "qcow2"
	}
	return d
}

func TestChoose(t *testing.T) {
	dir := t.TempDir()
	uefi := write(t, dir, "uefi.qcow2", forUEFI())
	both := write(t, dir, "both.qcow2", forBoth())
	data := write(t, dir, "data.raw", make([]byte, 1<<20))
	broken := disk.Disk{Name: "broken", Path: filepath.Join(dir, "data.raw"), Format: "qcow2"}
	drive := disk.Disk{Name: "installer.iso", Path: filepath.Join(dir, "none"), Format: "raw", CDROM: true}

	overlay := disk.Disk{Name: "overlay.qcow2", Path: filepath.Join(dir, "overlay.qcow2"), Format: "qcow2", Backing: uefi.Name}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", uefi.Path, overlay.Path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	loop := overlay
	loop.Backing = overlay.Name
	for _, c := range []struct {
		name, want, note string
		disks            []disk.Disk
	}{
		{"a disk for UEFI", UEFI, "uefi.qcow2 has an MBR", []disk.Disk{uefi}},
		{"a disk for both", BIOS, "", []disk.Disk{both}},
		{"in its backing file", UEFI, "overlay.qcow2 has an MBR", []disk.Disk{uefi, overlay}},
		{"data first", UEFI, "uefi.qcow2", []disk.Disk{data, uefi}},
		{"a CD-ROM", BIOS, "", []disk.Disk{drive, data}},
		{"the first disk decides", BIOS, "", []disk.Disk{drive, both, uefi}},
		{"a disk that cannot be read", BIOS, "not known", []disk.Disk{broken, uefi}},
		{"a backing file that is not there", BIOS, "not in the image", []disk.Disk{overlay}},
		{"its own backing file", BIOS, "", []disk.Disk{loop}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kind, note, err := Choose(c.disks)
			if err != nil || kind != c.want || !strings.Contains(note, c.note) || (note == "") != (c.note == "") {
				t.Errorf("got %q, %q, %v; want %q, %q", kind, note, err, c.want, c.note)
			}
		})
	}
	_, _, err := Choose([]disk.Disk{data})
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "data.raw has neither a boot sector nor a partition table") {
		t.Errorf("a disk that boots nothing: %v", err)
	}
}

func TestRefusal(t *testing.T) {
	for console, want := range map[string]string{
		"":                       "",
		"login: ":                "",
		"Booting from Hard Disk": "",
		"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\": Not Found\nBdsDxe: No bootable option or device was found.\n": "No bootable option",
		"UEFI Interactive Shell v2.2\nShell> ":                                                 "Interactive Shell",
		"BdsDxe: failed to load Boot0001 \"x\" from PciRoot(0x0): Access Denied\n":             "signed",
		"Booting from Hard Disk...\nBoot failed: not a bootable disk\n\nNo bootable device.\n": "No bootable device",
	} {
		if got := Refusal(console); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", console, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, text := range []string{
		"operation failed: Unable to find any firmware to satisfy 'efi'",
		"operation failed: Unable to find 'efi' firmware that is compatible with the current configuration",
	} {
		err := Explain(errors.New(text), "aarch64")
		if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "apt install qemu-efi-aarch64") || !strings.Contains(err.Error(), "dnf install edk2-aarch64") {
			t.Errorf("%s: %v", text, err)
		}
	}
	other := errors.New("unable to find a slot")
	if err := Explain(other, "x86_64"); err != other || Explain(nil, "") != nil {
		t.Errorf("another error: %v", err)
	}
	if !slices.Contains(Kinds, Auto) {
		t.Error("auto is no kind")
	}
}
