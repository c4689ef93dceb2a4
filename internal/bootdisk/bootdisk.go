// Package bootdisk tells from the beginning of a disk by which firmware it can boot: BIOS or
// UEFI.
package bootdisk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"gitlab-sardine-executor/internal/qcow2"
)

// Boots says by which firmware a disk can boot.
type Boots struct {
	// BIOS: there is a boot sector with code for it.
	BIOS bool
	// UEFI: there is a file system in which UEFI looks for a boot loader.
	UEFI bool
	// Found says what was found, as an object: "an EFI system partition and no …".
	Found string
}

const (
	sectorSize = 512
	// The first sector of a partitioned disk: code, entries, signature.
	codeSize        = 440
	mbrEntries      = 446
	mbrEntrySize    = 16
	activePartition = 0x80

	gptSignature = "EFI PART"
	// What a GPT header can make this package read. The usual table has 128 entries of 128
	// bytes.
	gptEntriesMax = 1024
	gptEntryMin   = 128
	gptEntryMax   = 4096
	// legacyBootable is the attribute of a partition that a BIOS may boot (UEFI
	// specification, 5.3.3).
	legacyBootable = 1 << 2
)

// Types of GPT partitions. The first three fields of a GUID are stored in little endian.
const (
	efiSystem = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xc0\x4f\xd4\x30\xc8" // C12A7328-F81F-11D2-BA4B-00C04FD430C8
	biosBoot  = "Hah!IdontNeedEFI"                                                 // 21686148-6449-6E6F-744E-656564454649
	basicData = "\xa2\xa0\xd0\xeb\xe5\xb9\x33\x44\x87\xc0\x68\xb6\xb7\x26\x99\xc7" // EBD0A0A2-B9E5-4433-87C0-68B6B72699C7
)

// fatTypes are the types of MBR partitions in which UEFI looks for a boot loader: FAT and EFI
// system partitions.
var fatTypes = []byte{0x01, 0x04, 0x06, 0x0b, 0x0c, 0x0e, 0xef}

// mkfsText is part of what the boot sector of mkfs.fat prints. It has code, but boots nothing.
var mkfsText = []byte("not a bootable disk")

// A File is one file of a backing chain. Format is "qcow2" or "raw".
type File struct{ Path, Format string }

// LookAt is [look] at a disk in a chain of files: each is backed by the next. It opens no
// other files.
func LookAt(chain []File) (Boots, error) {
	var content io.ReaderAt
	for _, file := range slices.Backward(chain) {
		f, err := os.Open(file.Path)
		if err != nil {
			return Boots{}, err
		}
		defer f.Close()
		if file.Format != "qcow2" {
			content = f
		} else if content, err = qcow2.NewContent(f, content); err != nil {
			return Boots{}, err
		}
	}
	return look(content)
}

// look reads the beginning of a disk: its first sector and its partition table. Nothing of it
// is trusted.
func look(disk io.ReaderAt) (Boots, error) {
	first := make([]byte, sectorSize)
	if err := readFull(disk, first, 0); err != nil {
		return Boots{}, err
	}
	header := make([]byte, sectorSize)
	if err := readFull(disk, header, sectorSize); err != nil {
		return Boots{}, err
	}
	signed := first[510] == 0x55 && first[511] == 0xaa
	switch {
	case bytes.HasPrefix(header, []byte(gptSignature)):
		return lookGPT(disk, first, header, signed)
	case !signed:
		return Boots{Found: "neither a boot sector nor a partition table"}, nil
	case isFAT(first):
		code := hasCode(first) && !isMformats(first)
		return Boots{BIOS: code, UEFI: true, Found: "a FAT file system " + andCode(code)}, nil
	}
	b := Boots{BIOS: hasCode(first[:codeSize])}
	for entry := range slices.Chunk(first[mbrEntries:mbrEntries+4*mbrEntrySize], mbrEntrySize) {
		b.UEFI = b.UEFI || slices.Contains(fatTypes, entry[4])
	}
	b.Found = "an MBR " + andCode(b.BIOS) + andESP(b.UEFI)
	return b, nil
}

// lookGPT tells by the partitions what the code in the first sector is good for: Windows and
// parted write code that boots an active MBR partition also to disks that have none.
func lookGPT(disk io.ReaderAt, first, header []byte, signed bool) (Boots, error) {
	at := binary.LittleEndian.Uint64(header[72:])
	count := min(binary.LittleEndian.Uint32(header[80:]), gptEntriesMax)
	size := binary.LittleEndian.Uint32(header[84:])
	if at < 2 || at > 1<<40 || size < gptEntryMin || size > gptEntryMax || size%8 != 0 {
		return Boots{}, fmt.Errorf("a GPT with %d entries of %d bytes at sector %d", count, size, at)
	}
	var system, forBIOS, basic bool
	entry := make([]byte, gptEntryMin)
	for i := range int64(count) {
		if err := readFull(disk, entry, int64(at)*sectorSize+i*int64(size)); err != nil {
			return Boots{}, err
		}
		switch string(entry[:16]) {
		case efiSystem:
			system = true
		case biosBoot:
			forBIOS = true
		case basicData:
			basic = true
		}
		forBIOS = forBIOS || binary.LittleEndian.Uint64(entry[48:])&legacyBootable != 0
	}
	for mbr := range slices.Chunk(first[mbrEntries:mbrEntries+4*mbrEntrySize], mbrEntrySize) {
		forBIOS = forBIOS || mbr[0] == activePartition
	}
	code := signed && hasCode(first[:codeSize])
	b := Boots{UEFI: system || basic}
	// GRUB can be somewhere else than in a partition for the BIOS.
	b.BIOS = code && (forBIOS || !system || bytes.Contains(first[:codeSize], []byte("GRUB")))
	b.Found = "a GPT " + andCode(b.BIOS) + andESP(system)
	return b, nil
}

func andCode(has bool) string {
	if has {
		return "with a boot sector for BIOS"
	}
	return "without a boot sector for BIOS"
}

func andESP(has bool) string {
	if has {
		return " and with an EFI system partition"
	}
	return " and without an EFI system partition"
}

// isFAT reports whether the first sector is that of a FAT file system without a partition
// table around it.
func isFAT(first []byte) bool {
	return (first[0] == 0xeb || first[0] == 0xe9) &&
		(bytes.HasPrefix(first[54:], []byte("FAT")) || bytes.HasPrefix(first[82:], []byte("FAT32")))
}

// isMformats reports whether the boot sector is the one that mformat writes, with some code
// that boots the next disk.
func isMformats(first []byte) bool {
	const end = 0x80
	return bytes.HasPrefix(first[3:], []byte("MTOO")) &&
		!slices.ContainsFunc(first[end:mbrEntries-6], func(b byte) bool { return b != 0 })
}

// hasCode reports whether there is code that can boot something.
func hasCode(code []byte) bool {
	return !bytes.Contains(code, mkfsText) && slices.ContainsFunc(code, func(b byte) bool { return b != 0 })
}

// readFull fills p with zeros behind the end of the disk.
func readFull(disk io.ReaderAt, p []byte, at int64) error {
	n, err := disk.ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}
