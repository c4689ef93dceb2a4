package define

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// A StartMode says what becomes of a clone.
type StartMode string

// The start modes of [Clone].
const (
	// CloneDefine defines the clone and does not start it.
	CloneDefine StartMode = "define"
	// ClonePrint makes nothing, only the XML of the clone that would be made now.
	ClonePrint StartMode = "print"
	// CloneEphemeral starts the clone as a transient domain and unlinks its files
	// as soon as QEMU holds them open: all of it is gone when it stops.
	CloneEphemeral StartMode = "ephemeral"
	// ClonePersistent defines the clone and starts it.
	ClonePersistent StartMode = "persistent"
)

// StartModes are all of them, the default first.
var StartModes = []StartMode{CloneDefine, ClonePrint, CloneEphemeral, ClonePersistent}

// CloneOptions say what [Clone] clones, and how.
type CloneOptions struct {
	// Source is the name of a defined domain that is shut off.
	Source string
	// Target is the name of the clone; there must be no domain of that name. Empty
	// means SOURCE-clone, SOURCE-clone-1, …: the first that nobody has.
	Target string
	// Start is CloneDefine if it is empty.
	Start StartMode
	// MAC is the address of the clone's only NIC. Empty gives every NIC a new
	// random one.
	MAC string
	// Dir is the directory for the clone's own files; the current one if it is
	// empty. QEMU must be able to reach it. It is made if it does not exist.
	Dir string
	// OmitBackingStore says whether the domain's XML leaves it to libvirt to find
	// out what the overlays stand on: OmitAuto (and empty), OmitYes or OmitNo.
	OmitBackingStore string
}

// A ClonedDomain is what [Clone] made.
type ClonedDomain struct {
	Name string
	// XML as libvirt was given it.
	XML string
	// Files are the paths of the clone's own files: overlays, UEFI variables. Those
	// of an ephemeral clone have been unlinked.
	Files []string
	// Notes say what the clone has otherwise than its source, beside what every
	// clone has (name, UUID, MAC addresses, overlays), one line each.
	Notes []string
}

// Clone clones a defined domain. The clone's disks are overlays on those of the
// source, which nobody may write any more from then on: a source that is started
// again breaks its clones. CD-ROMs and other read-only disks are shared. UEFI
// variables are copied; an emulated TPM is a new one. What two machines on one
// host cannot both have (fixed ports, socket paths, addresses) is new, too.
//
// If Clone fails, nothing of the clone is left. The error is [virt.ErrNoDomain] if
// there is no such source, [errdefs.ErrExists] if there is a domain of the name asked
// for, [errdefs.ErrInvalid] if this source cannot be cloned or the options make no sense.
func Clone(ctx context.Context, h *virt.Host, o CloneOptions) (*ClonedDomain, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	write, err := domain.WritesBackingStore(o.OmitBackingStore, h.Version())
	if err != nil {
		return nil, err
	}
	source, err := readCloneSource(ctx, h, o.Source)
	if err != nil {
		return nil, err
	}
	for name := range cloneNames(o) {
		c := &cloning{host: h, source: source, options: o, backingStore: write, name: name}
		done, err := c.run(ctx)
		if errors.Is(err, errdefs.ErrExists) && o.Target == "" {
			continue // also if somebody was faster
		}
		if err != nil {
			return nil, fmt.Errorf("clone %s: %w", o.Source, err)
		}
		return done, nil
	}
	panic("unreachable: there is always another name")
}

// complete fills in defaults and checks what needs no libvirt.
func (o *CloneOptions) complete() (err error) {
	if o.Start == "" {
		o.Start = CloneDefine
	}
	if !slices.Contains(StartModes, o.Start) {
		return fmt.Errorf("%w: start mode %q: want one of %q", errdefs.ErrInvalid, o.Start, StartModes)
	}
	if o.MAC != "" {
		if o.MAC, err = parseMAC(o.MAC); err != nil {
			return err
		}
	}
	if strings.ContainsAny(o.Target, "/\n") || o.Target == "." || o.Target == ".." {
		return fmt.Errorf("%w: %q is no name for a domain", errdefs.ErrInvalid, o.Target)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("find the directory for the clone: %w", err)
	}
	return nil
}

// cloneNames are the names that a clone may get, best first.
func cloneNames(o CloneOptions) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if o.Target != "" {
			yield(o.Target)
			return
		}
		name := o.Source + "-clone"
		for n := 1; yield(name); n++ {
			name = fmt.Sprintf("%s-clone-%d", o.Source, n)
		}
	}
}

// A cloning is one attempt to make a clone, under one name.
type cloning struct {
	host         *virt.Host
	source       *cloneSource
	options      CloneOptions
	backingStore bool // is written
	name         string

	undo rollback.Stack
}

func (c *cloning) run(ctx context.Context) (_ *ClonedDomain, err error) {
	switch dom, err := c.host.Domain(ctx, c.name); {
	case err == nil:
		dom.Free()
		return nil, fmt.Errorf("%w: %s at %s", errdefs.ErrExists, c.name, c.host.URI())
	case !errors.Is(err, virt.ErrNoDomain):
		return nil, err
	}
	d, err := c.source.domain()
	if err != nil {
		return nil, err
	}
	d.Name, d.UUID = c.name, uuid.NewString()
	done := &ClonedDomain{Name: c.name}
	if done.Notes, err = makeUnique(d, c.options); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo.Run())
		}
	}()
	if done.Files, err = c.place(ctx, d); err != nil {
		return nil, err
	}
	if done.XML, err = d.Marshal(); err != nil {
		return nil, fmt.Errorf("write the domain %s: %w", c.name, err)
	}
	return done, c.hand(ctx, d.UUID, done)
}

// place gives the domain its files, and returns their paths. For a clone that is
// only printed they are not made.
func (c *cloning) place(ctx context.Context, d *libvirtxml.Domain) (paths []string, err error) {
	files := planned(c.options.Dir)
	if c.options.Start != ClonePrint {
		if files, err = c.makeDir(); err != nil {
			return nil, err
		}
	}
	overlays := make(map[string]string)
	for _, base := range disk.TopDisks(c.source.disks) {
		path, err := files.overlay(ctx, base)
		if err != nil {
			return nil, err
		}
		overlays[base.Name] = path
		paths = append(paths, path)
	}
	c.placeDisks(d, overlays)
	if !disk.HasNVRAM(d.OS) {
		return paths, nil
	}
	nvram, err := files.nvram(d.OS, c.name, defaultNVRAM(c.host, c.options.Source))
	return append(paths, nvram), err
}

// makeDir readies the directory of the clone's files.
func (c *cloning) makeDir() (cloneFiles, error) {
	dir := c.options.Dir
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		c.undo.Add(func() error { _ = os.Remove(dir); return nil }) // unless others use it by now
	}
	// Like the directory of the overlays of jobs.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory for overlays: %w", err)
	}
	return &realFiles{dir: dir, undo: &c.undo}, nil
}

// placeDisks puts the overlays in place of the disks below them.
func (c *cloning) placeDisks(d *libvirtxml.Domain, overlays map[string]string) {
	byName := make(map[string]disk.Disk, len(c.source.disks))
	for _, base := range c.source.disks {
		byName[base.Name] = base
	}
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		base := byName[disk.SourcePath(device)]
		overlay, ok := overlays[base.Name]
		if !ok || !isWritten(device) {
			continue // shared
		}
		device.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: overlay}}
		if device.Driver == nil {
			device.Driver = &libvirtxml.DomainDiskDriver{Name: "qemu"}
		}
		device.Driver.Type = "qcow2"
		device.BackingStore = nil
		if c.backingStore && !c.source.unknown[base.Name] {
			device.BackingStore = domain.BackingChain(base, byName)
		}
		if c.options.Start == CloneEphemeral {
			neverForce(device)
		}
	}
}

// neverForce spares the disk of an ephemeral clone what only matters after a
// crash, as with the disks of jobs.
func neverForce(device *libvirtxml.DomainDisk) {
	driver := device.Driver
	driver.Cache, driver.Discard, driver.DetectZeros = "unsafe", "unmap", "unmap"
	driver.IO = ""         // native wants another cache mode
	device.Transient = nil // all of the machine is
}

// hand hands the clone over to libvirt.
func (c *cloning) hand(ctx context.Context, id string, done *ClonedDomain) error {
	mode := c.options.Start
	if mode == ClonePrint {
		return nil
	}
	owners := disk.OwnersOf(c.source.disks)
	// By its UUID: a domain of that name may be somebody else's.
	c.undo.Add(func() error {
		ctx, cancel := rollback.Context(ctx)
		defer cancel()
		return forget(ctx, c.host, id)
	})
	var dom *virt.Domain
	var err error
	if mode == CloneEphemeral {
		dom, err = c.host.Start(ctx, c.name, done.XML)
	} else {
		dom, err = c.host.Define(ctx, c.name, done.XML, false)
	}
	if err != nil {
		return c.whose(ctx, err)
	}
	defer dom.Free()
	if mode == ClonePersistent {
		if err := dom.Start(ctx); err != nil {
			return err
		}
	}
	if mode == CloneDefine {
		return nil
	}
	if err := owners.Restore(); err != nil || mode == ClonePersistent {
		return err
	}
	for _, path := range done.Files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("unlink the files of %s: %w", c.name, err)
		}
	}
	return nil
}

// whose is what it means that libvirt did not take the clone: perhaps that
// somebody else took its name since we looked.
func (c *cloning) whose(ctx context.Context, err error) error {
	if dom, lookup := c.host.Domain(ctx, c.name); lookup == nil {
		dom.Free()
		return fmt.Errorf("%w: %w", errdefs.ErrExists, err)
	}
	return virt.ClassifyXML(err)
}

// forget ends and undefines the domain with that UUID, if there is one. Its files
// are the caller's.
func forget(ctx context.Context, h *virt.Host, id string) error {
	dom, err := h.DomainByUUID(ctx, id)
	if errors.Is(err, virt.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	return dom.Remove(ctx)
}
