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

// A StartMode decides what happens to a clone.
type StartMode string

// The start modes of [Clone].
const (
	// CloneDefine defines the clone and does not start it.
	CloneDefine StartMode = "define"
	// ClonePrint only returns the XML of the clone, and creates nothing.
	ClonePrint StartMode = "print"
	// CloneEphemeral starts the clone as a transient domain and unlinks its files as soon as
	// QEMU has opened them: nothing remains when it stops.
	CloneEphemeral StartMode = "ephemeral"
	// ClonePersistent defines the clone and starts it.
	ClonePersistent StartMode = "persistent"
)

// startModes lists all start modes, the default first.
var startModes = []StartMode{CloneDefine, ClonePrint, CloneEphemeral, ClonePersistent}

// CloneOptions configure [Clone].
type CloneOptions struct {
	// Source is the name of a defined domain that is shut off.
	Source string
	// Target is the name of the clone. There must be no domain of that name. Empty means
	// the first free name of SOURCE-clone, SOURCE-clone-1, …
	Target string
	// Start mode; empty means CloneDefine.
	Start StartMode
	// MAC address of the clone's only NIC. Empty gives each NIC a random address.
	MAC string
	// Dir is the directory for the clone's files; empty means the current directory. QEMU
	// must be able to reach it. It is created if necessary.
	Dir string
	// OmitBackingStore omits <backingStore> and lets libvirt probe the chain:
	// [domain.OmitAuto] (and empty), [domain.OmitYes] or [domain.OmitNo].
	OmitBackingStore string
}

// A ClonedDomain is the result of [Clone].
type ClonedDomain struct {
	Name string
	// XML that was passed to libvirt.
	XML string
	// Files are the paths of the clone's files: overlays and UEFI variables. Those of an
	// ephemeral clone are unlinked.
	Files []string
	// Notes are the differences from the source, one line each, without those that all
	// clones have (name, UUID, MAC addresses, overlays).
	Notes []string
}

// Clone clones a defined domain. The clone's disks are overlays on the disks of the source,
// which must not be written any more: starting the source breaks its clones. CD-ROMs and
// other read-only disks are shared. UEFI variables are copied; an emulated TPM is new. The
// clone also gets new values for what only one machine on a host can have: fixed ports,
// socket paths and addresses.
//
// If Clone fails, it leaves nothing of the clone. The error is [errdefs.ErrNoDomain] if there
// is no such source, [errdefs.ErrExists] if there is a domain with the requested name, and
// [errdefs.ErrInvalid] if the source cannot be cloned or the options are invalid.
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
			continue // also if another process took the name
		}
		if err != nil {
			return nil, fmt.Errorf("clone %s: %w", o.Source, err)
		}
		return done, nil
	}
	panic("unreachable: there is always another name")
}

// complete fills in defaults and checks the options.
func (o *CloneOptions) complete() (err error) {
	if o.Start == "" {
		o.Start = CloneDefine
	}
	if !slices.Contains(startModes, o.Start) {
		return fmt.Errorf("%w: start mode %q: want one of %q", errdefs.ErrInvalid, o.Start, startModes)
	}
	if o.MAC != "" {
		if o.MAC, err = parseMAC(o.MAC); err != nil {
			return err
		}
	}
	if strings.ContainsAny(o.Target, "/\n") || o.Target == "." || o.Target == ".." {
		return fmt.Errorf("%w: %q cannot be the name of a domain", errdefs.ErrInvalid, o.Target)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("find the directory for the clone: %w", err)
	}
	return nil
}

// cloneNames yields the names to try.
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

// A cloning is one attempt to create a clone with one name.
type cloning struct {
	host         *virt.Host
	source       *cloneSource
	options      CloneOptions
	backingStore bool // describe the chain in the XML
	name         string

	undo rollback.Stack
}

func (c *cloning) run(ctx context.Context) (_ *ClonedDomain, err error) {
	switch dom, err := c.host.Domain(ctx, c.name); {
	case err == nil:
		dom.Free()
		return nil, fmt.Errorf("%w: %s at %s", errdefs.ErrExists, c.name, c.host.URI())
	case !errors.Is(err, errdefs.ErrNoDomain):
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
	return done, c.start(ctx, d.UUID, done)
}

// place gives the domain its files and returns their paths. It does not create them for a
// clone that is only printed.
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

// makeDir creates the directory of the clone's files.
func (c *cloning) makeDir() (cloneFiles, error) {
	dir := c.options.Dir
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		c.undo.Add(func() error { _ = os.Remove(dir); return nil }) // fails if it is in use
	}
	// The mode is that of the directory for the overlays of jobs.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("create the directory for overlays: %w", err)
	}
	return &realFiles{dir: dir, undo: &c.undo}, nil
}

// placeDisks replaces the disks by the overlays on them.
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

// neverForce ignores flushes of the disk of an ephemeral clone, as with the disks of jobs: it
// is useless after a crash.
func neverForce(device *libvirtxml.DomainDisk) {
	driver := device.Driver
	driver.Cache, driver.Discard, driver.DetectZeros = "unsafe", "unmap", "unmap"
	driver.IO = ""         // native requires another cache mode
	device.Transient = nil // the whole machine is transient
}

// start defines or starts the clone.
func (c *cloning) start(ctx context.Context, id string, done *ClonedDomain) error {
	mode := c.options.Start
	if mode == ClonePrint {
		return nil
	}
	owners := disk.OwnersOf(c.source.disks)
	// By its UUID: another process may have a domain with that name.
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
		return c.rejected(ctx, err)
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

// rejected explains why libvirt rejected the clone: another process may have taken its name
// since the check.
func (c *cloning) rejected(ctx context.Context, err error) error {
	if dom, lookup := c.host.Domain(ctx, c.name); lookup == nil {
		dom.Free()
		return fmt.Errorf("%w: %w", errdefs.ErrExists, err)
	}
	return virt.ClassifyXML(err)
}

// forget destroys and undefines the domain with that UUID, if there is one. The caller
// removes its files.
func forget(ctx context.Context, h *virt.Host, id string) error {
	dom, err := h.DomainByUUID(ctx, id)
	if errors.Is(err, errdefs.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	return dom.Remove(ctx)
}
