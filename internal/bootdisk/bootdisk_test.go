package bootdisk

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const diskSize = 4 << 20

// blank is an empty disk.
func blank() []byte { return make([]byte, diskSize) }

// partitioned is a disk that sfdisk has written a table to. sfdisk waits 250 ms before it
// tells a kernel.
func partitioned(t *testing.T, script string) []byte {
	t.Helper()
	return runWith(t, script, blank(), "/sbin/sfdisk", "--quiet", "--no-tell-kernel")
}

// installed is a FAT file system with the boot sector of syslinux.
func installed(t *testing.T, fat []byte) []byte {
	t.Helper()
	return run(t, fat, "syslinux", "--install")
}

// ofMkfs is a FAT file system with the text of the boot sector of mkfs.fat.
func ofMkfs(fat []byte) []byte {
	fat = withCode(fat, "\xeb\x3c\x90mkfs.fat")
	copy(fat[0x3e:], "\x0e\x1f\xbe\x5b\x7cThis is not a bootable disk.")
	return fat
}

// run lets a program change a disk. Its last argument is the path of the disk.
func run(t *testing.T, disk []byte, program string, args ...string) []byte {
	t.Helper()
	return runWith(t, "", disk, program, args...)
}

func runWith(t *testing.T, input string, disk []byte, program string, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, append(args, path)...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// withCode puts the beginning of a boot loader into the first sector.
func withCode(disk []byte, code string) []byte {
	disk = bytes.Clone(disk)
	copy(disk, code)
	return disk
}

const (
	grub    = "\xeb\x63\x90GRUB \x00Geom\x00Hard Disk\x00"
	windows = "\x33\xc0\x8e\xd0\xbc\x00\x7cInvalid partition table\x00"
	esp     = "type=C12A7328-F81F-11D2-BA4B-00C04FD430C8,size=1M\n"
	bios    = "type=21686148-6449-6E6F-744E-656564454649,size=512K\n"
	linux   = "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n"
)

func TestLook(t *testing.T) {
	gpt := "label: gpt\n"
	active := partitioned(t, gpt+esp)
	active[mbrEntries] = activePartition
	formatted := run(t, blank(), "mformat", "-v", "X", "-T", "8192", "-h", "16", "-s", "32", "::", "-i")
	for _, c := range []struct {
		name       string
		disk       []byte
		bios, uefi bool
	}{
		{"nothing", blank(), false, false},
		{"text", withCode(blank(), "not a disk at all"), false, false},
		{"an empty file", nil, false, false},
		{"MBR without code", partitioned(t, "label: dos\ntype=83\n"), false, false},
		{"MBR with code", withCode(partitioned(t, "label: dos\ntype=83,bootable\n"), grub), true, false},
		{"MBR with an EFI system partition", partitioned(t, "label: dos\ntype=ef\n"), false, true},
		{"MBR with both", withCode(partitioned(t, "label: dos\ntype=ef\n"), grub), true, true},
		{"GPT without a boot loader", partitioned(t, gpt+linux), false, false},
		{"GPT of systemd-boot", partitioned(t, gpt+esp+linux), false, true},
		{"GPT of a cloud image, for both", withCode(partitioned(t, gpt+bios+esp+linux), grub), true, true},
		{"GPT for BIOS", withCode(partitioned(t, gpt+bios+linux), grub), true, false},
		{"GPT of syslinux", withCode(partitioned(t, gpt+strings.TrimSpace(esp)+",attrs=LegacyBIOSBootable\n"), windows), true, true},
		{"GPT of Windows, with code for an active partition that is not there", withCode(partitioned(t, gpt+esp), windows), false, true},
		{"GPT with an active entry in its MBR", withCode(active, windows), true, true},
		{"GPT with GRUB outside of partitions", withCode(partitioned(t, gpt+esp), grub), true, true},
		{"FAT of mformat", formatted, false, true},
		{"FAT of mkfs.fat", ofMkfs(formatted), false, true},
		{"FAT of syslinux", installed(t, formatted), true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := look(bytes.NewReader(c.disk))
			if err != nil || got.BIOS != c.bios || got.UEFI != c.uefi || got.Found == "" {
				t.Errorf("got %+v, %v; want BIOS %v, UEFI %v", got, err, c.bios, c.uefi)
			}
		})
	}
}

// A GPT header can ask for anything.
func TestLookAtHostileGPT(t *testing.T) {
	good := partitioned(t, "label: gpt\n"+esp)
	set := func(at int, value any) []byte {
		disk := bytes.Clone(good)
		if _, err := binary.Encode(disk[sectorSize+at:], binary.LittleEndian, value); err != nil {
			t.Fatal(err)
		}
		return disk
	}
	for name, disk := range map[string][]byte{
		"table at sector 0":        set(72, uint64(0)),
		"table at the end of time": set(72, ^uint64(0)),
		"entries of no bytes":      set(84, uint32(0)),
		"entries of 4 GiB":         set(84, ^uint32(0)),
	} {
		if got, err := look(bytes.NewReader(disk)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got, err := look(bytes.NewReader(set(80, ^uint32(0)))); err != nil || !got.UEFI {
		t.Errorf("4 billion entries: %+v, %v", got, err)
	}
	if got, err := look(bytes.NewReader(set(72, uint64(1<<40)))); err != nil || got.UEFI {
		t.Errorf("a table behind the end: %+v, %v", got, err)
	}
}

func FuzzLook(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x00", 510) + "\x55\xaaEFI PART"))
	f.Fuzz(func(t *testing.T, disk []byte) { look(bytes.NewReader(disk)) })
}
