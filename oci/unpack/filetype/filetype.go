package filetype

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"gitlab-sardine-executor/oci/unpack/decompress"
)

const sector = 512

// foreign lists magic bytes of files that are no disks.
var foreign = []struct {
	offset int
	magic  string
	what   string
}{
	{0, "\x7fELF", "a program (ELF)"},
	{0, "\x1f\x8b\x08", "compressed once more (gzip)"},
	{0, string(decompress.MagicXZ), "compressed once more (xz)"},
	{0, string(decompress.MagicZstd), "compressed once more (zstd)"},
	{0, "BZh", "compressed once more (bzip2)"},
	{0, "\x04\x22\x4d\x18", "compressed (lz4); gzip, xz, zstd and bzip2 are read"},
	{0, "PK\x03\x04", "a ZIP archive"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{257, "ustar", "a tar archive"},
	{0, "KDMV", "a disk of VMware (VMDK)"},
	{0, "# Disk DescriptorFile", "the description of a disk of VMware (VMDK)"},
	{0, "vhdxfile", "a disk of Hyper-V (VHDX)"},
	{0, "conectix", "a disk of Hyper-V (VHD)"},
	{64, "\x7f\x10\xda\xbe", "a disk of VirtualBox (VDI)"},
	{0, "shdw", "a disk in Apple's format (ASIF)"},
}

// NotADisk describes a file that no machine can boot from; it returns "" if one may. A boot
// sector or a partition table is sufficient, whatever the rest.
func NotADisk(head []byte) string {
	if len(head) == 0 {
		return "empty"
	}
	if hasBootSector(head) || hasGPT(head) {
		return ""
	}
	for _, f := range foreign {
		if len(head) > f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f.what
		}
	}
	if isText(head[:min(len(head), sector)]) {
		return fmt.Sprintf("text: %.60q", head[:min(len(head), 60)])
	}
	return ""
}

func hasBootSector(head []byte) bool {
	return len(head) >= sector && head[510] == 0x55 && head[511] == 0xaa
}

// hasGPT finds the header of a GUID partition table, in the second sector of 512 or
// 4096 bytes.
func hasGPT(head []byte) bool {
	for _, at := range []int{sector, 4096} {
		if len(head) > at && bytes.HasPrefix(head[at:], []byte("EFI PART")) {
			return true
		}
	}
	return false
}

func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\r' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isoDescriptor is the offset of the volume descriptors of ISO 9660, after 16 sectors of
// 2048 bytes.
const isoDescriptor = 16 * 2048

// IsISO recognizes ISO 9660 images: installers and live systems. A disk with partitions may
// have an old descriptor before its first partition.
func IsISO(head []byte) bool {
	if len(head) < isoDescriptor+6 || string(head[isoDescriptor+1:isoDescriptor+6]) != "CD001" {
		return false
	}
	first := firstPartition(head)
	return first < 0 || first <= isoDescriptor/sector
}

// firstPartition returns the first sector of the first partition; -1 if there is none.
func firstPartition(head []byte) int64 {
	first := int64(math.MaxInt64)
	if hasGPT(head) && bytes.HasPrefix(head[sector:], []byte("EFI PART")) {
		for at := 2 * sector; at+128 <= min(len(head), isoDescriptor); at += 128 {
			if entry := head[at : at+128]; !bytes.Equal(entry[:16], make([]byte, 16)) {
				first = min(first, int64(min(binary.LittleEndian.Uint64(entry[32:]), math.MaxInt64)))
			}
		}
	} else if hasBootSector(head) {
		for at := 446; at < 510; at += 16 {
			if entry := head[at : at+16]; !bytes.Equal(entry, make([]byte, 16)) {
				first = min(first, int64(binary.LittleEndian.Uint32(entry[8:])))
			}
		}
	}
	if first == math.MaxInt64 {
		return -1
	}
	return first
}
