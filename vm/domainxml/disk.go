package domainxml

import (
	"path"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

var (
	layerName  = newPattern(`^[^/\x00-\x1f\x7f]{1,255}$`)
	diskTarget = newPattern(`^(fd[ab]|hd[a-z]|(sd|vd)a?[a-z])$`)
	// diskSerial matches what libvirt accepts (virDomainDiskDefValidate), without characters
	// of paths and URLs.
	diskSerial  = newPattern(`^[A-Za-z0-9 _.+-]{1,36}$`)
	diskWWN     = newPattern(`^[0-9a-fA-F]{16}$`)
	scsiVendor  = newPattern(`^[A-Za-z0-9 ._-]{1,8}$`)
	scsiProduct = newPattern(`^[A-Za-z0-9 ._-]{1,16}$`)
)

// check prevents paths in a domain.
func (d Disk) check() error {
	if matching(layerName, d.Name) == "" || d.Name == "." || d.Name == ".." {
		return refuse("", "the layer %.80q has no base name of a file", d.Name)
	}
	if oneOf(d.Format, "qcow2", "raw") == "" {
		return refuse("", "the layer %.80q is neither qcow2 nor raw", d.Name)
	}
	return nil
}

func (r *rebuilder) disk(element string, in *libvirtxml.DomainDisk) (*libvirtxml.DomainDisk, error) {
	out := &libvirtxml.DomainDisk{
		Device:  in.Device,
		Model:   oneOf(in.Model, "virtio", "virtio-transitional", "virtio-non-transitional"),
		Target:  &libvirtxml.DomainDiskTarget{},
		Serial:  matching(diskSerial, in.Serial),
		WWN:     matching(diskWWN, in.WWN),
		Vendor:  matching(scsiVendor, in.Vendor),
		Product: matching(scsiProduct, in.Product),
		BlockIO: blockIO(in.BlockIO),
		Boot:    bootOrder(in.Boot),
		ACPI:    acpiIndex(in.ACPI),
		Alias:   r.alias(in.Alias),
	}
	switch out.Device {
	case "disk", "cdrom", "floppy":
	case "":
		out.Device = "disk"
	default:
		return nil, refuse(element+"/@device", "%q is none of disk, cdrom, floppy", text(in.Device))
	}
	if err := diskTargetOf(element, in.Target, out.Target); err != nil {
		return nil, err
	}
	if in.ReadOnly != nil || out.Device == "cdrom" {
		out.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	var err error
	if out.Address, err = address(element, in.Address); err != nil {
		return nil, err
	}
	if err := r.medium(element, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

func diskTargetOf(element string, in, out *libvirtxml.DomainDiskTarget) error {
	element += "/target"
	if in == nil {
		return refuse(element, "it is missing")
	}
	out.Dev = matching(diskTarget, in.Dev)
	if out.Dev == "" {
		return refuse(element+"/@dev", "%q is not the name of a disk (vda, sda, hda, fda)", text(in.Dev))
	}
	out.Bus = oneOf(in.Bus, "virtio", "sata", "scsi", "ide", "usb", "fdc", "nvme")
	if out.Bus == "" && in.Bus != "" {
		return refuse(element+"/@bus", "%q is none of virtio, sata, scsi, ide, usb, fdc, nvme", text(in.Bus))
	}
	out.Removable = onOff(in.Removable)
	if in.RotationRate <= 65534 {
		out.RotationRate = in.RotationRate
	}
	return nil
}

func blockIO(in *libvirtxml.DomainDiskBlockIO) *libvirtxml.DomainDiskBlockIO {
	sizes := []uint{0, 512, 1024, 2048, 4096, 8192, 16384, 32768}
	if in == nil || !slices.Contains(sizes, in.LogicalBlockSize) || !slices.Contains(sizes, in.PhysicalBlockSize) ||
		in.LogicalBlockSize+in.PhysicalBlockSize == 0 {
		return nil
	}
	return &libvirtxml.DomainDiskBlockIO{
		LogicalBlockSize: in.LogicalBlockSize, PhysicalBlockSize: in.PhysicalBlockSize,
	}
}

// medium sets the layer of a drive. If the medium of a CD-ROM or floppy drive is not in the
// image, the drive is empty. If a disk is not in the image, the domain is refused.
func (r *rebuilder) medium(element string, in, out *libvirtxml.DomainDisk) error {
	if err := refuseContent(element, in); err != nil {
		return err
	}
	layer := ""
	if in.Source != nil && in.Source.File != nil {
		layer = path.Base(in.Source.File.File)
		if r.anyDisk && matching(layerName, layer) != "" && r.formats[layer] == "" {
			r.formats[layer] = "raw"
		}
		if r.formats[layer] == "" {
			layer = ""
		}
	}
	out.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: layer}}
	if layer == "" {
		if out.Device != "disk" {
			return nil
		}
		return refuse(element+"/source", "its source is not a layer of the image (%s)", r.layers())
	}
	if r.used[layer] {
		return refuse(element+"/source", "another disk of the domain has the layer %.80q already", layer)
	}
	r.used[layer] = true
	out.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu", Type: r.formats[layer]}
	if d := in.Driver; d != nil && d.Type != "" && d.Type != out.Driver.Type {
		r.replace(element+"/driver/@type", "what the image says", out.Driver.Type)
	}
	return nil
}

// refuseContent refuses elements that change the meaning of a layer's bytes, or refer to other
// files.
func refuseContent(element string, in *libvirtxml.DomainDisk) error {
	if in.Encryption != nil {
		return refuse(element+"/encryption", "the key of an encrypted disk is not in an image")
	}
	if in.Source == nil {
		return nil
	}
	switch s := in.Source; {
	case s.Encryption != nil:
		return refuse(element+"/source/encryption", "the key of an encrypted disk is not in an image")
	case s.Slices != nil:
		return refuse(element+"/source/slices", "a disk is a whole layer")
	case s.DataStore != nil:
		return refuse(element+"/source/dataStore", "a disk keeps its data in its layer")
	}
	return nil
}

func (r *rebuilder) layers() string {
	if len(r.formats) == 0 {
		return "it has none"
	}
	names := make([]string, 0, len(r.formats))
	for n := range r.formats {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
