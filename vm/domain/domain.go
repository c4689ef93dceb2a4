// Package domain builds the libvirt domain of a machine from the domain XML of an image, the
// template of an administrator or the default machine.
package domain

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/firmware"
)

// firstWithBackingStore is the first version of libvirt for which domains contain
// <backingStore>. Older versions probe the headers of overlays anyway, and refuse some
// chains. The Python tool uses the same version.
const firstWithBackingStore = 9_001_000

// The values of OmitBackingStore.
const (
	OmitAuto = "auto" // yes for libvirt before 9.1.0
	OmitYes  = "yes"
	OmitNo   = "no"
)

// WritesBackingStore reports whether domains contain <backingStore>, or let libvirt probe the
// chain. omit is one of the constants above, or empty for auto; version is libvirt's.
func WritesBackingStore(omit string, version uint32) (bool, error) {
	switch omit {
	case "", OmitAuto:
		return version >= firstWithBackingStore, nil
	case OmitYes:
		return false, nil
	case OmitNo:
		return true, nil
	}
	return false, fmt.Errorf("%w: omit_backingstore is %q: want auto, yes or no", errdefs.ErrInvalid, omit)
}

// A Source describes what the domain of a machine is built from.
type Source struct {
	// DomainXML is the domain XML of the image; nil means the default machine. It is not
	// trusted: [domainxml.Rebuild] keeps only what is harmless.
	DomainXML []byte
	// Trusted lets DomainXML contain more. The administrator decides that, never an image.
	Trusted bool
	// Template is the path of the administrator's own domain XML, which replaces the
	// image's; empty for none. It is trusted. A disk in it names a disk of the image as its
	// source, or has no source and gets the next disk that is not named.
	Template string
	// Architecture of the default machine, by Go's name; empty means amd64.
	Architecture string
	// Emulate is the architecture, by Go's name, that the machine may have although the host
	// has another; empty for none. The administrator decides that.
	Emulate string
	// Disks of the image. The machine gets those that are not backing files: CD-ROMs are
	// shared, and each other disk gets an overlay.
	Disks []disk.Disk
	// Accel is "kvm", "tcg", or "auto" (and empty): KVM where it works.
	Accel string
	// Firmware is one of [firmware.Kinds]; empty means auto. Auto keeps what DomainXML says,
	// and gives the default machine what its disk needs. A template keeps its own.
	Firmware string
	// OmitBackingStore omits <backingStore> and lets libvirt probe the chain: [OmitAuto]
	// (and empty), [OmitYes] or [OmitNo].
	OmitBackingStore string
	// NamesUnknown accepts any names of disks: the image is checked before the pull. The
	// domain cannot be started then.
	NamesUnknown bool
}

// Files holds the paths of the files of a machine.
type Files struct {
	Overlays map[string]string // by the name of the disk
	NVRAM    string            // path of the UEFI variables
	Console  string            // log of the serial console
	// BackingStore: describe the chain below the overlays.
	BackingStore bool
}

// Build builds the domain from the template, the image's domain XML or the default machine.
// notes say what was decided, one line each.
func Build(source Source) (result *domainxml.Result, notes []string, err error) {
	switch {
	case source.Template != "":
		result, err = rebuildTemplate(source.Template, source.Disks)
		return result, nil, err
	case source.DomainXML != nil:
		result, err = domainxml.Rebuild(source.DomainXML, domainxml.Options{Disks: layersOf(source.Disks), Trusted: source.Trusted, AnyDisk: source.NamesUnknown})
		if err != nil {
			return nil, nil, err
		}
	default:
		d, note, err := defaultDomain(source)
		if err != nil {
			return nil, nil, err
		}
		result = &domainxml.Result{Domain: d}
		if note != "" {
			notes = []string{note}
		}
	}
	if err := setFirmware(result.Domain, source.Firmware); err != nil {
		return nil, nil, err
	}
	if source.DomainXML == nil || !source.Trusted {
		withoutSecureBoot(result.Domain.OS)
	}
	return result, notes, nil
}

// defaultDomain builds the default machine, with the firmware that its disk needs.
func defaultDomain(source Source) (d *libvirtxml.Domain, note string, err error) {
	opts := domainxml.DefaultOptions{Arch: source.Architecture}
	for _, d := range disk.TopDisks(source.Disks) {
		opts.Disks = append(opts.Disks, domainxml.DefaultDisk{
			Disk: domainxml.Disk{Name: d.Name, Format: d.Format}, CDROM: d.CDROM,
		})
	}
	if d, err = domainxml.Default(opts); err != nil || source.NamesUnknown {
		return d, "", err
	}
	if cmp.Or(source.Firmware, firmware.Auto) != firmware.Auto || d.OS.Firmware != "" {
		return d, "", nil
	}
	kind, note, err := firmware.Choose(source.Disks)
	if err != nil {
		return nil, "", err
	}
	return d, note, setFirmware(d, kind)
}

// ApplyInstance gives the domain of an image the name and the files of one machine. What its
// guest does ends it or not, whatever the image says: a guest may reboot while it boots, and
// a reboot must not look like a shutdown.
func ApplyInstance(d *libvirtxml.Domain, name string, disks []disk.Disk, files Files) error {
	d.Name, d.Metadata = name, nil
	d.OnPoweroff, d.OnReboot, d.OnCrash = "destroy", "restart", "destroy"
	if disk.HasNVRAM(d.OS) {
		disk.SetNVRAM(d.OS, files.NVRAM)
	}
	LogConsole(d, files.Console)
	return PlaceDisks(d, disks, files)
}

// PlaceDisks replaces the names of layers by paths. The overlay of a job is useless after a
// crash of the host: flushes are ignored, and blocks that the guest discards are freed.
func PlaceDisks(d *libvirtxml.Domain, disks []disk.Disk, files Files) error {
	byName := make(map[string]disk.Disk, len(disks))
	for _, image := range disks {
		byName[image.Name] = image
	}
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if device.Source == nil || device.Source.File == nil || device.Source.File.File == "" {
			continue // an empty drive
		}
		image, ok := byName[device.Source.File.File]
		if !ok {
			return fmt.Errorf("%w: its disk %q is not a file of the image", errdefs.ErrInvalid, device.Source.File.File)
		}
		overlay, writable := files.Overlays[image.Name]
		if !writable { // CD-ROMs are shared
			device.Source.File.File = image.Path
			device.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu", Type: image.Format}
			device.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
			continue
		}
		device.Source.File.File = overlay
		device.Driver = &libvirtxml.DomainDiskDriver{
			Name: "qemu", Type: "qcow2", Cache: "unsafe", Discard: "unmap", DetectZeros: "unmap",
		}
		if files.BackingStore {
			device.BackingStore = BackingChain(image, byName)
		}
	}
	return nil
}

// BackingChain describes base and its backing chain, so that libvirt does not probe
// untrusted files.
func BackingChain(base disk.Disk, byName map[string]disk.Disk) *libvirtxml.DomainDiskBackingStore {
	store := &libvirtxml.DomainDiskBackingStore{
		Format:       &libvirtxml.DomainDiskFormat{Type: base.Format},
		Source:       diskSource(base.Path),
		BackingStore: &libvirtxml.DomainDiskBackingStore{},
	}
	if next, ok := byName[base.Backing]; ok && base.Backing != "" {
		store.BackingStore = BackingChain(next, byName)
	}
	return store
}

// diskSource describes a file or a block device: QEMU opens them differently.
func diskSource(path string) *libvirtxml.DomainDiskSource {
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
	}
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

// LogConsole connects the first serial port to a file. A domain without a serial port gets
// none: its image does not expect the device.
func LogConsole(d *libvirtxml.Domain, path string) {
	if len(d.Devices.Serials) == 0 {
		return
	}
	file := &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: path, Append: "off"}}
	d.Devices.Serials[0].Source = file
	for i := range d.Devices.Consoles {
		if c := &d.Devices.Consoles[i]; c.Target == nil || c.Target.Type == "" || c.Target.Type == "serial" {
			c.Source = file // for libvirt, the first console is the first serial port
			break
		}
	}
}
