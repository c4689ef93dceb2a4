package disk

import (
	"path/filepath"

	"libvirt.org/go/libvirtxml"
)

// SourcePath returns the absolute path of the file or block device of a disk; empty if it
// has neither.
func SourcePath(d *libvirtxml.DomainDisk) string {
	switch {
	case d.Source == nil:
		return ""
	case d.Source.File != nil && d.Source.File.File != "":
		return filepath.Clean(d.Source.File.File)
	case d.Source.Block != nil:
		return filepath.Clean(d.Source.Block.Dev)
	}
	return ""
}

// TargetName returns the name of a disk in the guest, such as vda.
func TargetName(d *libvirtxml.DomainDisk) string {
	if d.Target == nil {
		return "without a target"
	}
	return d.Target.Dev
}

// FreeTarget returns a target name that no disk of the domain has. An empty prefix is "sd".
func FreeTarget(d *libvirtxml.Domain, prefix string) string {
	if prefix == "" {
		prefix = "sd"
	}
	taken := make(map[string]bool)
	for _, disk := range d.Devices.Disks {
		if disk.Target != nil {
			taken[disk.Target.Dev] = true
		}
	}
	letter := 'z'
	if prefix == "hd" {
		letter = 'd' // IDE has four drives
	}
	for ; letter > 'a' && taken[prefix+string(letter)]; letter-- {
	}
	return prefix + string(letter)
}
