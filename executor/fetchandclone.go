package executor

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/claim"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/credentials"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/executor/tools"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// FetchAndCloneOptions configure [FetchAndClone].
type FetchAndCloneOptions struct {
	Image oci.Reference
	Pull  store.PullOptions
	Dirs  config.Dirs
	// Name of the machine.
	Name string
	// Settings for the image.
	Settings config.Resolved
	// Size of the machine, and the conditions for its admission.
	Size      policy.Size
	Admission admission.Policy
	// Cache of the machine; nil for none.
	Cache *cache.Config
	// Record of the job; image and digest are filled in.
	Record record.Record
	// Version of this program.
	Version string
	// TakeIdle takes an idle machine instead of starting one, if there is one of the same
	// kind.
	TakeIdle bool
	// KeepDisks keeps the overlays until [removal.Remove], and the image locked: the caller closes
	// [Instance.Image].
	KeepDisks bool
	// Log of the job.
	Log *joblog.Log
	// Phase is called at the start of a phase, and its result at the end; may be nil.
	Phase func(name string) (end func())
	// Detail gets details for the administrator; may be nil.
	Detail func(text string)
}

// An Instance is a running clone of an image.
type Instance struct {
	Name  string // of the domain
	Guest *vm.Started
	Login guestssh.Login // to the guest
	Image *oci.Image
	// Kind is equal for machines that are made alike; empty if the job chose the size, or if
	// this host has no idle machines. See [claim.Kind].
	Kind string
}

// FetchAndClone pulls and unpacks an image unless the store has it, clones it
// copy-on-write and starts the clone, an ephemeral machine. It does not wait for the
// guest. If it fails, it removes the machine; if that booted for a snapshot, [removal.Remove]
// still has to remove its console log. The image stays in the store.
//
// With the setting memory_snapshot the clone resumes from a snapshot of a booted machine,
// which is made if necessary.
//
// The clone is made by [vm.Start], not by [define.Clone]: it needs no defined domain, and does
// not trust the image's domain XML.
func FetchAndClone(ctx context.Context, host *virt.Host, o FetchAndCloneOptions) (started *Instance, err error) {
	images, err := store.Open(o.Dirs.Store)
	if err != nil {
		return nil, err
	}
	end := o.begin("pull", "sardine_pull", "Pulling "+o.Image.String())
	began := time.Now()
	image, err := images.Pull(ctx, o.Image, CheckedBy(ctx, host, o.Settings, o.Pull))
	if err != nil {
		end()
		return nil, err
	}
	defer func() {
		if started == nil || !o.KeepDisks {
			image.Close() // not before QEMU has opened its disks
		}
	}()
	o.Log.Say("Image %s, %s, %s, on %s (%s)", o.Image, image.Digest, units.BytesSize(float64(image.Size())), joblog.Hostname(), joblog.Seconds(time.Since(began)))
	end()
	o.Record.Image, o.Record.Digest = o.Image.String(), image.Digest.String()
	login, seed, err := credentials.For(o.Settings, image.Guest)
	if err != nil {
		return nil, err
	}
	spec := SpecFor(image, o)
	spec.Seed = seed
	if spec.Tools, err = tools.Disk(o.Settings, o.Dirs.Tools); err != nil {
		o.Log.Warn("the guest gets no disk with gitlab-runner: %v", err)
	}
	kind := ""
	if o.Record.Idle || o.TakeIdle && idle.Used(o.Dirs.Jobs) {
		if kind, err = o.kind(host, image, login, spec); err != nil {
			return nil, err
		}
	}
	guest, err := o.takeIdle(ctx, host, spec, kind)
	if guest == nil && err == nil {
		guest, err = o.start(ctx, host, image, spec, login)
	}
	if err != nil {
		return nil, fmt.Errorf("start a machine of %s: %w", o.Image, err)
	}
	for _, warning := range guest.Warnings {
		o.Log.Warn("%s", warning)
	}
	for _, note := range guest.Notes {
		o.detail(note)
	}
	return &Instance{Name: o.Name, Guest: guest, Login: guest.Login(login), Image: image, Kind: kind}, nil
}

// kind is the fingerprint of the machine that spec describes; empty if the job chose its size:
// no idle machine has that.
func (o *FetchAndCloneOptions) kind(host *virt.Host, image *oci.Image, login guestssh.Login, spec vm.Spec) (string, error) {
	if o.Size.Chosen {
		return "", nil
	}
	k := claim.Kind{
		Version: o.Version, Connect: host.URI(), Image: image.Key(), Reference: o.Image.String(),
		Settings: o.Settings, Size: o.Size, Login: login,
	}
	if spec.Tools != nil {
		k.Tools = spec.Tools.Path
	}
	return k.Fingerprint()
}

// KindOf is the kind of the machines that [MakeIdle] would make of the image in the store. The
// error is [oci.ErrNotFound] if the store does not have it.
func (o *FetchAndCloneOptions) KindOf(host *virt.Host) (string, error) {
	images, err := store.Open(o.Dirs.Store)
	if err != nil {
		return "", err
	}
	image, err := images.Lookup(o.Image, o.Pull.Architecture)
	if err != nil {
		return "", err
	}
	login, _, err := credentials.For(o.Settings, image.Guest)
	if err != nil {
		return "", err
	}
	var spec vm.Spec
	if spec.Tools, err = tools.Disk(o.Settings, o.Dirs.Tools); err != nil {
		o.detail(err.Error())
	}
	return o.kind(host, image, login, spec)
}

// takeIdle takes an idle machine of that kind; nil if there is none.
func (o *FetchAndCloneOptions) takeIdle(ctx context.Context, host *virt.Host, spec vm.Spec, kind string) (*vm.Started, error) {
	if !o.TakeIdle || kind == "" {
		return nil, nil
	}
	wish := claim.Wish{
		Kind: kind, Name: o.Name, Place: spec.Place, Cache: o.Cache, Record: o.Record, Admission: o.Admission, Detail: o.detail,
	}
	return wish.Take(ctx, host)
}

// start starts a machine, from a snapshot if the settings want that.
func (o *FetchAndCloneOptions) start(ctx context.Context, host *virt.Host, image *oci.Image, spec vm.Spec, login guestssh.Login) (*vm.Started, error) {
	if o.Settings.MemorySnapshot && !o.Size.Chosen {
		spec.SnapshotDir = o.Dirs.Snapshot(image.Key())
		if err := o.snapshot(ctx, host, spec, login); err != nil {
			return nil, fmt.Errorf("make a snapshot: %w", err)
		}
	}
	return vm.Start(ctx, host, spec)
}

func (o *FetchAndCloneOptions) detail(text string) {
	if o.Detail != nil {
		o.Detail(text)
	}
}

// begin starts a phase and a section of the log.
func (o *FetchAndCloneOptions) begin(phase, section, title string) (end func()) {
	endSection, endPhase := o.Log.Section(section, title), func() {}
	if o.Phase != nil {
		endPhase = o.Phase(phase)
	}
	return func() { endPhase(); endSection() }
}

// place is where the machine has its files.
func (o *FetchAndCloneOptions) place() vm.Place {
	return vm.Place{OverlayDir: o.Dirs.Overlays, JobDir: o.Dirs.Job(o.Name)}
}

// SpecFor describes a machine of an image to vm.
func SpecFor(image *oci.Image, o FetchAndCloneOptions) vm.Spec {
	disks := make([]disk.Disk, len(image.Disks))
	for i, d := range image.Disks {
		disks[i] = disk.Disk{
			Name:        d.Name,
			Path:        filepath.Join(image.Dir, d.Name),
			Format:      d.Format,
			Backing:     d.Backing,
			VirtualSize: d.VirtualSize,
			CDROM:       d.CDROM,
		}
	}
	return vm.Spec{
		Name: o.Name,
		Source: domain.Source{
			DomainXML:        image.DomainXML,
			Trusted:          o.Settings.Trusted,
			Template:         o.Settings.Domain,
			Architecture:     o.Settings.MachineArchitecture(image.Architecture),
			Emulate:          o.Settings.Architecture,
			Disks:            disks,
			Accel:            o.Settings.Accel,
			Firmware:         o.Settings.Firmware,
			OmitBackingStore: o.Settings.OmitBackingStore,
		},
		Size: domain.Size{
			CPUs:      o.Size.CPUs,
			Memory:    o.Size.Memory,
			MaxCPUs:   o.Settings.MaxCPUs,
			MaxMemory: o.Settings.MaxMemory,
			DiskSize:  o.Size.Disk,
		},
		Place:      o.place(),
		Admission:  o.Admission,
		Network:    o.Settings.Network,
		HostAccess: o.Settings.HostAccess,
		SSHPort:    image.Guest.SSHPort(),
		LoginGrace: o.Settings.LoginGrace, KeepOverlays: o.KeepDisks,
		Cache:      o.Cache,
		CacheLater: o.Record.Idle && o.Settings.Cache == config.CacheDisk,
		Record:     o.Record,
	}
}
