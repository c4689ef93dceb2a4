package vm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
)

// ConsoleFile is the log of the guest's serial console, in the job directory.
const ConsoleFile = "console.log"

// nvramFile has the UEFI variables of a machine, among its files.
const nvramFile = "nvram.fd"

// firstLibvirtWithBackingStore: older ones write what they read from the
// overlays' headers themselves, and refuse some chains that are given to them.
// The Python tool draws the same line.
const firstLibvirtWithBackingStore = 9_001_000

// The values of [Spec.OmitBackingStore].
const (
	OmitAuto = "auto" // yes for libvirt before 9.1.0
	OmitYes  = "yes"
	OmitNo   = "no"
)

// omitsBackingStore says whether the XML of a domain leaves out what its overlays
// stand on, where auto means what it says.
func omitsBackingStore(choice string, auto bool) (bool, error) {
	switch choice {
	case "", OmitAuto:
		return auto, nil
	case OmitYes:
		return true, nil
	case OmitNo:
		return false, nil
	}
	return false, fmt.Errorf("%w: omit_backingstore is %q: want auto, yes or no", ErrSpec, choice)
}

// layout says where the files of one machine are.
type layout struct {
	overlays     map[string]string // by the name of the disk
	nvram        string            // path of the UEFI variables
	console      string
	backingStore bool // write the chain below the overlays
}

// domainOf rebuilds the domain of the administrator or the image, or makes the
// default one.
func domainOf(spec *Spec) (*domainxml.Result, error) {
	if spec.Template != "" {
		return rebuildTemplate(spec.Template, spec.Disks)
	}
	if spec.DomainXML != nil {
		result, err := domainxml.Rebuild(spec.DomainXML, domainxml.Options{Disks: layersOf(spec.Disks), Trusted: spec.Trusted})
		if err == nil && !spec.Trusted {
			withoutSecureBoot(result.Domain.OS)
		}
		return result, err
	}
	opts := domainxml.DefaultOptions{Arch: spec.Architecture, UEFI: spec.UEFI}
	for _, d := range disk.TopDisks(spec.Disks) {
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

// personalise makes the domain of an image that of one machine.
func personalise(d *libvirtxml.Domain, spec *Spec, files layout) error {
	metadata, err := spec.Record.Metadata()
	if err != nil {
		return err
	}
	d.Name, d.Metadata = spec.Name, metadata
	if disk.HasNVRAM(d.OS) {
		disk.SetNVRAM(d.OS, files.nvram)
	}
	logConsole(d, files.console)
	omit, err := omitsBackingStore(spec.OmitBackingStore, !files.backingStore)
	if err != nil {
		return err
	}
	files.backingStore = !omit
	return placeDisks(d, spec.Disks, files)
}

// placeDisks turns the names of layers into paths. Nobody needs the overlay of a
// job after a crash of the host, so nothing of it is ever forced to the disk,
// and what the guest frees is given back.
func placeDisks(d *libvirtxml.Domain, disks []disk.Disk, files layout) error {
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
			return fmt.Errorf("%w: its disk %q is no file of the image", ErrSpec, device.Source.File.File)
		}
		overlay, writable := files.overlays[image.Name]
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
		if files.backingStore {
			device.BackingStore = backingChain(image, byName)
		}
	}
	return nil
}

// backingChain describes base and what it stands on, so that libvirt need not
// look into the files of a stranger to find out.
func backingChain(base disk.Disk, byName map[string]disk.Disk) *libvirtxml.DomainDiskBackingStore {
	store := &libvirtxml.DomainDiskBackingStore{
		Format:       &libvirtxml.DomainDiskFormat{Type: base.Format},
		Source:       diskSource(base.Path),
		BackingStore: &libvirtxml.DomainDiskBackingStore{},
	}
	if next, ok := byName[base.Backing]; ok && base.Backing != "" {
		store.BackingStore = backingChain(next, byName)
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

// logConsole sends the first serial port to a file. A domain without one gets
// none: it would get a device that its image does not expect.
func logConsole(d *libvirtxml.Domain, path string) {
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

// machineFiles are the paths of one machine's files.
func machineFiles(spec *Spec) (dir string, files layout) {
	dir = filepath.Join(spec.CloneDir, spec.Name)
	return dir, layout{
		nvram:   filepath.Join(dir, nvramFile),
		console: filepath.Join(spec.JobDir, ConsoleFile),
	}
}
