package define

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// maxChain is the maximum length of a backing chain, as in libvirt (virStorageSourceChain).
const maxChain = 200

// A cloneSource is a domain that can be cloned.
type cloneSource struct {
	doc string
	// disks are the disks that it writes and their backing files. Their names are their
	// absolute paths.
	disks []disk.Disk
	// unknown are the disks with an unknown backing file: libvirt must probe the chain.
	unknown map[string]bool
}

// readCloneSource looks up a domain and checks that it can be cloned.
func readCloneSource(ctx context.Context, h *virt.Host, name string) (*cloneSource, error) {
	dom, err := h.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	defer dom.Free()
	// Include passwords: a clone keeps the VNC password of its source.
	doc, err := dom.InactiveXML(ctx, true)
	if err != nil {
		return nil, err
	}
	active, err := dom.IsActive(ctx)
	if err != nil {
		return nil, err
	}
	saved, err := dom.HasManagedSave(ctx)
	if err != nil {
		return nil, err
	}
	source := &cloneSource{doc: doc, unknown: map[string]bool{}}
	d, err := source.domain()
	if err != nil {
		return nil, err
	}
	if err := source.readDisks(d); err != nil {
		return nil, fmt.Errorf("domain %s: %w", name, err)
	}
	switch {
	case d.Metadata != nil && strings.Contains(d.Metadata.XML, record.Namespace):
		return nil, fmt.Errorf("%w: domain %s is the machine of a job and cannot be cloned", errdefs.ErrInvalid, name)
	case active && len(source.disks) > 0:
		return nil, fmt.Errorf("%w: domain %s is running: the disks of a clone would change (run virsh shutdown %s first)", errdefs.ErrInvalid, name, name)
	case saved && len(source.disks) > 0:
		return nil, fmt.Errorf("%w: domain %s has a managed save: some data for its disks is in its saved memory (run virsh start %s and virsh shutdown %s first)", errdefs.ErrInvalid, name, name, name)
	}
	return source, nil
}

// domain returns a copy of the source's domain.
func (s *cloneSource) domain() (*libvirtxml.Domain, error) {
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(s.doc); err != nil {
		return nil, fmt.Errorf("read the XML of the domain: %w", err)
	}
	if d.Devices == nil {
		d.Devices = &libvirtxml.DomainDeviceList{}
	}
	return d, nil
}

// isWritten reports whether a machine writes to a disk, and so needs an overlay.
func isWritten(d *libvirtxml.DomainDisk) bool {
	return d.Source != nil && d.ReadOnly == nil && d.Device != "cdrom"
}

// readDisks finds the disks that need overlays, and their backing files.
func (s *cloneSource) readDisks(d *libvirtxml.Domain) error {
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if !isWritten(device) || (device.Device == "floppy" && disk.SourcePath(device) == "") {
			continue
		}
		if err := checkCloneable(device); err != nil {
			return fmt.Errorf("%w: its disk %s %w", errdefs.ErrInvalid, disk.TargetName(device), err)
		}
		format := "raw" // the default of libvirt
		if device.Driver != nil && device.Driver.Type != "" {
			format = device.Driver.Type
		}
		if err := s.readChain(disk.SourcePath(device), format); err != nil {
			return fmt.Errorf("its disk %s: %w", disk.TargetName(device), err)
		}
	}
	return nil
}

// checkCloneable checks that an overlay can be created on a disk.
func checkCloneable(d *libvirtxml.DomainDisk) error {
	switch {
	case d.Device == "lun":
		return errors.New("is a SCSI device of the host")
	case d.Shareable != nil:
		return errors.New("is shareable: other machines may write to it at any time")
	case d.Encryption != nil || d.Source.Encryption != nil:
		return errors.New("is encrypted")
	case d.Source.Slices != nil:
		return errors.New("is part of a file")
	case disk.SourcePath(d) == "":
		return errors.New("is neither a file nor a block device")
	}
	return nil
}

// readChain adds a disk and its backing files.
func (s *cloneSource) readChain(path, format string) error {
	top := path
	for range maxChain {
		file := disk.Disk{Name: path, Path: path, Format: format}
		header, err := readDisk(&file)
		if err != nil {
			return err
		}
		if header == nil || header.BackingFile == "" {
			s.disks = append(s.disks, file)
			return nil
		}
		base, ok := backingPath(path, header)
		if ok {
			file.Backing = base
		} else {
			s.unknown[top] = true
		}
		s.disks = append(s.disks, file)
		if !ok {
			return nil
		}
		path, format = base, header.BackingFormat
	}
	return fmt.Errorf("%w: its backing chain has more than %d files", errdefs.ErrInvalid, maxChain)
}

// readDisk fills in the size of a disk, which is trusted. The header is nil if the disk is not
// qcow2.
func readDisk(d *disk.Disk) (*qcow2.Header, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, fmt.Errorf("read its size: %w", err)
	}
	defer f.Close()
	if d.Format == "qcow2" {
		header, err := qcow2.ReadHeader(f)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errdefs.ErrInvalid, d.Path, err)
		}
		d.VirtualSize = header.VirtualSize
		return header, nil
	}
	// Seek also works for block devices.
	if d.VirtualSize, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("read the size of %s: %w", d.Path, err)
	}
	return nil, nil
}

// backingPath returns the backing file that a header names; false if it is not a plain file,
// or the header does not name its format.
func backingPath(path string, h *qcow2.Header) (string, bool) {
	name := h.BackingFile
	// QEMU takes text before the first colon for a protocol, unless it contains a slash.
	if colon := strings.IndexByte(name, ':'); colon >= 0 && !strings.Contains(name[:colon], "/") {
		return "", false
	}
	if h.BackingFormat != "qcow2" && h.BackingFormat != "raw" {
		return "", false
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(path), name)
	}
	return filepath.Clean(name), true
}
