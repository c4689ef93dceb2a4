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

// maxChain bounds how many files a disk may stand on. libvirt draws the line at
// the same place (virStorageSourceChain).
const maxChain = 200

// A cloneSource is a domain that can be cloned.
type cloneSource struct {
	doc string
	// disks are those that it writes and all that they stand on. They are named by
	// their absolute paths.
	disks []disk.Disk
	// unknown are those of which we could not find out what they stand on: libvirt
	// has to.
	unknown map[string]bool
}

// readCloneSource finds a domain and makes sure that it can be cloned.
func readCloneSource(ctx context.Context, h *virt.Host, name string) (*cloneSource, error) {
	dom, err := h.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	defer dom.Free()
	// Secure: a clone must not lose the password of its source's screen.
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
		return nil, fmt.Errorf("%w: domain %s is the machine of a job, and not to be cloned", errdefs.ErrInvalid, name)
	case active && len(source.disks) > 0:
		return nil, fmt.Errorf("%w: domain %s is running: the disks of a clone would change under it (first: virsh shutdown %s)", errdefs.ErrInvalid, name, name)
	case saved && len(source.disks) > 0:
		return nil, fmt.Errorf("%w: domain %s is saved: part of what is on its disks is in its saved memory (first: virsh start %s and virsh shutdown %s)", errdefs.ErrInvalid, name, name, name)
	}
	return source, nil
}

// domain is the source's domain, to be changed.
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

// isWritten says whether a machine writes to a disk, so that each needs its own.
func isWritten(d *libvirtxml.DomainDisk) bool {
	return d.Source != nil && d.ReadOnly == nil && d.Device != "cdrom"
}

// readDisks finds the disks that need overlays, and what they stand on.
func (s *cloneSource) readDisks(d *libvirtxml.Domain) error {
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if !isWritten(device) || (device.Device == "floppy" && disk.SourcePath(device) == "") {
			continue
		}
		if err := checkCloneable(device); err != nil {
			return fmt.Errorf("%w: its disk %s %w", errdefs.ErrInvalid, disk.TargetName(device), err)
		}
		format := "raw" // what libvirt takes it for
		if device.Driver != nil && device.Driver.Type != "" {
			format = device.Driver.Type
		}
		if err := s.readChain(disk.SourcePath(device), format); err != nil {
			return fmt.Errorf("its disk %s: %w", disk.TargetName(device), err)
		}
	}
	return nil
}

// checkCloneable says why no overlay can be put on a disk.
func checkCloneable(d *libvirtxml.DomainDisk) error {
	switch {
	case d.Device == "lun":
		return errors.New("is a SCSI device of the host")
	case d.Shareable != nil:
		return errors.New("is shareable: other machines may write it at any time")
	case d.Encryption != nil || d.Source.Encryption != nil:
		return errors.New("is encrypted")
	case d.Source.Slices != nil:
		return errors.New("is a part of a file")
	case disk.SourcePath(d) == "":
		return errors.New("is neither a file nor a block device")
	}
	return nil
}

// readChain adds a disk and all that it stands on.
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
	return fmt.Errorf("%w: it stands on more than %d files", errdefs.ErrInvalid, maxChain)
}

// readDisk fills in the size of a disk, which is its owner's and trusted. The
// header is nil if the disk is not qcow2.
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
	// Seek knows the size of a block device, too.
	if d.VirtualSize, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("read the size of %s: %w", d.Path, err)
	}
	return nil, nil
}

// backingPath is the file that a header names; false if it is not a plain file of
// a format that it names, too.
func backingPath(path string, h *qcow2.Header) (string, bool) {
	name := h.BackingFile
	// QEMU takes what stands before the first colon for a protocol, unless there is
	// a slash before it.
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
