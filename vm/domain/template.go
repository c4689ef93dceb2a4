package domain

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
)

// rebuildTemplate builds the domain from the template of the administrator. Only what is
// specific to one machine is dropped (see [domainxml.Options], Trusted).
func rebuildTemplate(path string, disks []disk.Disk) (*domainxml.Result, error) {
	doc, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: read the template of its domain: %w", errdefs.ErrInvalid, err)
	}
	filled, err := fillTemplate(string(doc), disks)
	if err != nil {
		return nil, fmt.Errorf("%w: the template %s: %w", errdefs.ErrInvalid, path, err)
	}
	result, err := domainxml.Rebuild([]byte(filled), domainxml.Options{Disks: layersOf(disks), Trusted: true})
	if err != nil {
		return nil, fmt.Errorf("the template %s: %w", path, err)
	}
	return result, nil
}

// fillTemplate gives each disk of a template without a source the next disk of the image
// that the template does not name. So one template fits images with different disk names.
// CD-ROM and floppy drives stay empty.
func fillTemplate(doc string, disks []disk.Disk) (string, error) {
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return "", err
	}
	if d.Devices == nil {
		return "", fmt.Errorf("it has no devices")
	}
	left := disk.TopDisks(disks)
	left = without(left, func(d disk.Disk) bool { return d.CDROM })
	for i := range d.Devices.Disks {
		if path := disk.SourcePath(&d.Devices.Disks[i]); path != "" {
			left = without(left, func(d disk.Disk) bool { return d.Name == filepath.Base(path) })
		}
	}
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if !isBlank(device) {
			continue
		}
		if len(left) == 0 {
			return "", fmt.Errorf("there is no disk in the image for %s (the image has: %s)", disk.TargetName(device), diskNames(disks))
		}
		device.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: left[0].Name}}
		left = left[1:]
	}
	return d.Marshal()
}

// isBlank reports whether a disk of a template needs a disk of the image.
func isBlank(d *libvirtxml.DomainDisk) bool {
	if d.Device == "cdrom" || d.Device == "floppy" {
		return false
	}
	return d.Source == nil || (d.Source.File != nil && d.Source.File.File == "")
}

// without returns the disks for which drop is false.
func without(disks []disk.Disk, drop func(disk.Disk) bool) []disk.Disk {
	var rest []disk.Disk
	for _, d := range disks {
		if !drop(d) {
			rest = append(rest, d)
		}
	}
	return rest
}

func diskNames(disks []disk.Disk) string {
	if len(disks) == 0 {
		return "none"
	}
	names := make([]string, len(disks))
	for i, d := range disks {
		names[i] = d.Name
	}
	return strings.Join(names, ", ")
}

// layersOf converts the disks of an image for package domainxml.
func layersOf(disks []disk.Disk) []domainxml.Disk {
	layers := make([]domainxml.Disk, len(disks))
	for i, d := range disks {
		layers[i] = domainxml.Disk{Name: d.Name, Format: d.Format}
	}
	return layers
}
