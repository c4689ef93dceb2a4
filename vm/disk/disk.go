package disk

// A Disk is one file of an image. It is complete, and no machine writes to it.
type Disk struct {
	// Name of the file in the image's domain XML.
	Name string
	// Path of the file on this host.
	Path string
	// Format is "qcow2" or "raw". QEMU never probes it.
	Format string
	// Backing is the Name of the backing file; empty if there is none.
	Backing string
	// VirtualSize is the size of the disk in the guest, in bytes.
	VirtualSize int64
	CDROM       bool
}
