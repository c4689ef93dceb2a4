package disk

// A Disk is one file of an image: complete, read-only, never written by a
// machine.
type Disk struct {
	// Name by which the image's domain XML calls the file.
	Name string
	// Path of the file on this host.
	Path string
	// Format is "qcow2" or "raw". QEMU is told, and never probes.
	Format string
	// Backing is the Name of the disk that backs this one; empty if none.
	Backing string
	// VirtualSize is the size that a guest sees, in bytes.
	VirtualSize int64
	CDROM       bool
}
