package define

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"al.essio.dev/pkg/shellescape"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// ErrRunning: the domain is running, and so its disks change.
var ErrRunning = errors.New("the virtual machine is running")

// An UnfitError says what of a domain an image cannot contain.
type UnfitError struct{ error }

func (e UnfitError) Unwrap() error { return e.error }

// A Captured describes a virtual machine for an image. Its domain XML contains nothing that
// is specific to this host.
type Captured struct {
	Name string
	// DomainXML names the disks as Disks do.
	DomainXML []byte
	// Architecture by Go's name.
	Architecture string
	Disks        []CapturedDisk
}

// A CapturedDisk is a disk of the machine. Its header names its backing files.
type CapturedDisk struct {
	// Path of the file on this host, Name in the image.
	Path, Name string
	// Format of the disk in the domain: "qcow2", "raw", or one that images do not support.
	Format string
	CDROM  bool
}

// Capture describes a defined domain for an image. It keeps the name and drops UUID, MAC
// addresses, host paths and everything else that is specific to one machine or one host.
// The error is [errdefs.ErrNoDomain] if there is no domain of that name, [ErrRunning] if it is running
// or suspended, and an [UnfitError] if its XML or its disks cannot be in an image.
func Capture(ctx context.Context, h *virt.Host, name string) (*Captured, error) {
	dom, err := h.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	defer dom.Free()
	active, err := dom.IsActive(ctx)
	if err != nil {
		return nil, err
	}
	if active {
		if _, err := record.Read(ctx, dom); err == nil {
			return nil, fmt.Errorf("%w: it is the machine of a job", ErrRunning)
		}
		return nil, fmt.Errorf("%w: shut it down first (virsh -c %s shutdown %s)", ErrRunning, h.URI(), shellescape.Quote(name))
	}
	saved, err := dom.HasManagedSave(ctx)
	if err == nil && saved {
		return nil, fmt.Errorf("%w: it is only suspended to disk: start it and shut it down first", ErrRunning)
	}
	doc, err := dom.InactiveXML(ctx, false)
	if err != nil {
		return nil, err
	}
	captured, err := capture(doc)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", name, UnfitError{err})
	}
	return captured, nil
}

func capture(doc string) (*Captured, error) {
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return nil, fmt.Errorf("read its XML: %w", err)
	}
	captured := &Captured{Name: d.Name}
	if d.OS != nil && d.OS.Type != nil {
		captured.Architecture = goArch(d.OS.Type.Arch)
	}
	sanitize(d)
	var err error
	if captured.Disks, err = captureDisks(d); err != nil {
		return nil, err
	}
	if doc, err = d.Marshal(); err != nil {
		return nil, fmt.Errorf("write its XML: %w", err)
	}
	// libvirt rejects an empty address. The Python tool also writes the element without the
	// attribute.
	captured.DomainXML = []byte(strings.ReplaceAll(doc, `<mac address=""></mac>`, `<mac/>`))
	return captured, nil
}

// sanitize drops what is specific to one machine or one host, except the disks.
func sanitize(d *libvirtxml.Domain) {
	d.ID, d.UUID = nil, ""
	d.SecLabel, d.Resource, d.GenID = nil, nil, nil
	if d.Metadata != nil && (strings.Contains(d.Metadata.XML, originNamespace) || strings.Contains(d.Metadata.XML, record.Namespace)) {
		d.Metadata = nil
	}
	if d.OS != nil {
		d.OS.NVRam = nil // the file is not part of the image
	}
	if d.Devices == nil {
		d.Devices = &libvirtxml.DomainDeviceList{}
	}
	for i := range d.Devices.Interfaces {
		nic := &d.Devices.Interfaces[i]
		nic.Target = nil
		if nic.MAC != nil {
			nic.MAC = &libvirtxml.DomainInterfaceMAC{}
		}
	}
	pty := func() *libvirtxml.DomainChardevSource {
		return &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}
	}
	for i := range d.Devices.Serials {
		d.Devices.Serials[i].Source, d.Devices.Serials[i].Log = pty(), nil
	}
	for i := range d.Devices.Consoles {
		d.Devices.Consoles[i].Source, d.Devices.Consoles[i].Log = pty(), nil
	}
	for i := range d.Devices.Channels {
		if source := d.Devices.Channels[i].Source; source != nil && source.UNIX != nil {
			source.UNIX.Path = ""
		}
	}
	for i := range d.Devices.Graphics {
		if vnc := d.Devices.Graphics[i].VNC; vnc != nil {
			vnc.Passwd, vnc.PasswdValidTo = "", ""
		}
		if spice := d.Devices.Graphics[i].Spice; spice != nil {
			spice.Passwd, spice.PasswdValidTo = "", ""
		}
	}
}

// captureDisks replaces the paths of disks by unique names, and lists the disks.
func captureDisks(d *libvirtxml.Domain) ([]CapturedDisk, error) {
	var disks []CapturedDisk
	names := make(map[string]bool)
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		device.BackingStore, device.Mirror = nil, nil
		removable := device.Device == "cdrom" || device.Device == "floppy"
		if device.Source == nil {
			continue // an empty drive
		}
		if device.Source.File == nil {
			return nil, fmt.Errorf("disk %s is not a file: copy it to one first (qemu-img convert)", disk.TargetName(device))
		}
		path := device.Source.File.File
		if path == "" && removable {
			continue
		}
		if device.Encryption != nil || device.Source.Encryption != nil {
			return nil, fmt.Errorf("disk %s is encrypted: others could not open it", disk.TargetName(device))
		}
		format := "raw"
		if device.Driver != nil && device.Driver.Type != "" {
			format = device.Driver.Type
		}
		name := freeName(names, filepath.Base(path))
		names[name] = true
		device.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: name}}
		disks = append(disks, CapturedDisk{Path: path, Name: name, Format: format, CDROM: device.Device == "cdrom"})
	}
	if len(disks) == 0 {
		return nil, errors.New("it has no disk")
	}
	return disks, nil
}

// freeName returns name, or the first of name-1, name-2, … that is free. The number is before
// the extension.
func freeName(taken map[string]bool, name string) string {
	ext := filepath.Ext(name)
	stem := strings.TrimSuffix(name, ext)
	free := name
	for n := 1; taken[free]; n++ {
		free = fmt.Sprintf("%s-%d%s", stem, n, ext)
	}
	return free
}

// goArch converts libvirt's name of an architecture to Go's.
func goArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i686":
		return "386"
	}
	return arch
}
