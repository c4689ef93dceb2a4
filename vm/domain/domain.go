// Package domain writes the libvirt domain of a machine: from the domain of an image, the
// template of an administrator or the default machine, with its size and its disks.
package domain

import (
	"fmt"
	"io/fs"
	"os"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
)

// firstWithBackingStore is the first libvirt that is given the backing stores of overlays.
// Older ones write what they read from the overlays' headers themselves, and refuse
// some chains that are given to them. The Python tool draws the same line.
const firstWithBackingStore = 9_001_000

// The values of OmitBackingStore.
const (
	OmitAuto = "auto" // yes for libvirt before 9.1.0
	OmitYes  = "yes"
	OmitNo   = "no"
)

// WritesBackingStore says whether the XML of a domain says what its overlays stand on.
// omit is one of the constants above, or empty for auto; version is libvirt's.
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

// A Source is what the domain of a machine is made from.
type Source struct {
	// DomainXML is the domain that the image brings; nil means the default
	// machine. It is not trusted: [domainxml.Rebuild] keeps what can do no harm.
	DomainXML []byte
	// Trusted lets DomainXML bring more (an admin's decision, never an image's).
	Trusted bool
	// Template is the path of an administrator's own domain XML, in place of the
	// image's; empty for none. It is trusted. A disk names a disk of the image as
	// its source, or has no source: then it gets the next that is left.
	Template string
	// Architecture in Go's terms, for the default machine; empty means the
	// host's.
	Architecture string
	// Disks of the image. Those that no other disk backs onto become the
	// machine's; each gets an overlay, CD-ROMs are shared.
	Disks []disk.Disk
	// Accel is "kvm", "tcg", or "auto" (and empty): KVM where it works.
	Accel string
	// OmitBackingStore decides whether the domain describes what the overlays are based on,
	// or leaves that to libvirt: [OmitAuto] (and empty), [OmitYes] or [OmitNo].
	OmitBackingStore string
	// NamesUnknown says that the disks have other names: the image is judged before
	// they are there. What is built is no machine then.
	NamesUnknown bool
}

// Files says where the files of one machine are.
type Files struct {
	Overlays map[string]string // by the name of the disk
	NVRAM    string            // path of the UEFI variables
	Console  string            // log of the serial console
	// BackingStore says to write the chain below the overlays.
	BackingStore bool
}

// Build rebuilds the domain of the administrator or the image, or makes the
// default one.
func Build(source Source) (*domainxml.Result, error) {
	if source.Template != "" {
		return rebuildTemplate(source.Template, source.Disks)
	}
	if source.DomainXML != nil {
		result, err := domainxml.Rebuild(source.DomainXML, domainxml.Options{Disks: layersOf(source.Disks), Trusted: source.Trusted, AnyDisk: source.NamesUnknown})
		if err == nil && !source.Trusted {
			withoutSecureBoot(result.Domain.OS)
		}
		return result, err
	}
	opts := domainxml.DefaultOptions{Arch: source.Architecture}
	for _, d := range disk.TopDisks(source.Disks) {
		opts.Disks = append(opts.Disks, domainxml.DefaultDisk{
			Disk: domainxml.Disk{Name: d.Name, Format: d.Format}, CDROM: d.CDROM,
		})
	}
	domain, err := domainxml.Default(opts)
	if err != nil {
		return nil, err
	}
	withoutSecureBoot(domain.OS)
	return &domainxml.Result{Domain: domain}, nil
}

// ApplyInstance makes the domain of an image that of one machine, whose name and files it
// gets.
func ApplyInstance(d *libvirtxml.Domain, name string, disks []disk.Disk, files Files) error {
	d.Name, d.Metadata = name, nil
	if disk.HasNVRAM(d.OS) {
		disk.SetNVRAM(d.OS, files.NVRAM)
	}
	LogConsole(d, files.Console)
	return PlaceDisks(d, disks, files)
}

// PlaceDisks turns the names of layers into paths. Nobody needs the overlay of a
// job after a crash of the host, so nothing of it is ever forced to the disk,
// and what the guest frees is given back.
func PlaceDisks(d *libvirtxml.Domain, disks []disk.Disk, files Files) error {
	byName := make(map[string]disk.Disk, len(disks))
	for _, image := range disks {
		byName[image.Name] = image
	}
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if device.Source == nil || device.Source.File == nil || device.Source.File.File == "" {
			continue // a drive without medium
		}
		image, ok := byName[device.Source.File.File]
		if !ok {
			return fmt.Errorf("%w: its disk %q is no file of the image", errdefs.ErrInvalid, device.Source.File.File)
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

// BackingChain describes base and what it stands on, so that libvirt need not
// look into the files of a stranger to find out.
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

// withoutSecureBoot keeps libvirt from choosing firmware that boots only what
// Microsoft's keys have signed, unless the image asks for it: of all that is
// installed, Debian's libvirt chooses that one first, and a guest that is not
// signed would never start.
func withoutSecureBoot(system *libvirtxml.DomainOS) {
	if system.Firmware != "efi" || (system.Loader != nil && system.Loader.Secure == "yes") {
		return
	}
	info := system.FirmwareInfo
	if info == nil {
		info = &libvirtxml.DomainOSFirmwareInfo{}
	}
	for _, f := range info.Features {
		if f.Name == "secure-boot" || f.Name == "enrolled-keys" && f.Enabled == "yes" {
			return
		}
	}
	info.Features = append(info.Features, libvirtxml.DomainOSFirmwareFeature{Name: "secure-boot", Enabled: "no"})
	system.FirmwareInfo = info
}

// diskSource is a file or a block device, which QEMU does not open as a file.
func diskSource(path string) *libvirtxml.DomainDiskSource {
	if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeDevice != 0 {
		return &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
	}
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

// LogConsole sends the first serial port to a file. A domain without one gets
// none: it would get a device that its image does not expect.
func LogConsole(d *libvirtxml.Domain, path string) {
	if len(d.Devices.Serials) == 0 {
		return
	}
	file := &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: path, Append: "off"}}
	d.Devices.Serials[0].Source = file
	for i := range d.Devices.Consoles {
		if c := &d.Devices.Consoles[i]; c.Target == nil || c.Target.Type == "" || c.Target.Type == "serial" {
			c.Source = file // libvirt: the first console is the first serial port
			break
		}
	}
}
