// Package defaultmachine describes the machine of an image that brings no domain of its
// own. Export writes such a domain into images made of disks alone, and a job starts one
// for images without a domain: both must be the same machine.
package defaultmachine

const (
	// CPUs of the machine.
	CPUs = 2
	// Memory of the machine, in bytes.
	Memory = 2 << 30
)

// A Board is a machine type of QEMU.
type Board struct {
	// Arch and Machine are libvirt's names of architecture and machine type.
	Arch, Machine string
	// UEFI: the board has no other firmware.
	UEFI bool
}

// BoardFor returns the board for an architecture, by Go's or libvirt's name. ok is false
// if there is no default machine of that architecture.
func BoardFor(arch string) (b Board, ok bool) {
	switch arch {
	case "amd64", "x86_64":
		return Board{Arch: "x86_64", Machine: "q35"}, true
	case "arm64", "aarch64":
		return Board{Arch: "aarch64", Machine: "virt", UEFI: true}, true
	}
	return Board{}, false
}
