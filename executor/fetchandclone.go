package executor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
)

// FetchAndCloneOptions say what [FetchAndClone] makes a machine of, and how.
type FetchAndCloneOptions struct {
	Image oci.Reference
	Pull  oci.PullOptions
	Dirs  config.Dirs
	// Name of the machine.
	Name string
	// Settings for the image.
	Settings config.Resolved
	// Size of the machine, and when the host has room for it.
	Size      Size
	Admission admission.Policy
	// Cache of the machine; nil for none.
	Cache *cache.Config
	// Record of the job; image and digest are filled in.
	Record record.Record
	// Log hears how it goes on.
	Log *joblog.Log
	// Phase is called when a phase begins, and what it returns when it ends; nil is
	// fine.
	Phase func(name string) (end func())
	// Detail is told what only an administrator can use; nil is fine.
	Detail func(text string)
}

// A Machine is a running clone of an image.
type Machine struct {
	// Name of the domain, and the configuration of its guest as the image gives it.
	Name   string
	Config oci.GuestConfig

	Image *oci.Image
	Guest *vm.Guest
	// Login is how to log in to the guest.
	Login guestssh.Login
}

// FetchAndClone does all in one: it fetches an image unless it is there, unpacks
// it unless that was done, clones it copy-on-write and starts the clone, an
// ephemeral machine. It returns the configuration of the guest, with the name of
// its domain; it does not wait for the guest. If it fails, nothing of the machine
// is left but what [vm.Remove] removes: the log of its console, if it booted for a snapshot
// in vain. An image that was unpacked stays.
//
// With the setting memory_snapshot the clone goes on from a snapshot of a machine that has
// booted, which is made if it is not there.
//
// The clone is [vm.Start]'s, not [define.Clone]'s: no domain has to be defined that
// holds the image, and nothing that the image brings is believed.
func FetchAndClone(ctx context.Context, host *vm.Host, o FetchAndCloneOptions) (*Machine, error) {
	store, err := oci.OpenStore(o.Dirs.Store)
	if err != nil {
		return nil, err
	}
	end := o.begin("pull", "sardine_pull", "Pulling "+o.Image.String())
	began := time.Now()
	image, err := store.Pull(ctx, o.Image, o.Pull)
	end()
	if err != nil {
		return nil, err
	}
	defer image.Close() // held until QEMU has its disks open
	o.Log.Say("Image %s, %s, %s, on %s (%s)", o.Image, image.Digest, units.BytesSize(float64(sizeOf(image))), hostname(), joblog.Seconds(time.Since(began)))
	o.Record.Image, o.Record.Digest = o.Image.String(), image.Digest.String()
	login, seed, err := loginFor(o.Settings, image.Guest)
	if err != nil {
		return nil, err
	}
	spec := SpecFor(image, o)
	spec.Seed = seed
	if o.Settings.MemorySnapshot && !o.Size.Chosen {
		spec.SnapshotDir = o.Dirs.Snapshot(image.Digest)
		if err := o.snapshot(ctx, host, spec, login); err != nil {
			return nil, fmt.Errorf("make a snapshot of %s: %w", o.Image, err)
		}
	}
	guest, err := vm.Start(ctx, host, spec)
	if err != nil {
		return nil, fmt.Errorf("start a machine of %s: %w", o.Image, err)
	}
	for _, warning := range guest.Warnings {
		o.Log.Warn("%s", warning)
	}
	for _, note := range guest.Notes {
		o.detail(note)
	}
	return &Machine{Name: o.Name, Config: image.Guest, Image: image, Guest: guest, Login: guest.Login(login)}, nil
}

func (o *FetchAndCloneOptions) detail(text string) {
	if o.Detail != nil {
		o.Detail(text)
	}
}

// begin begins a phase, with a section of the log.
func (o *FetchAndCloneOptions) begin(phase, section, title string) (end func()) {
	endSection, endPhase := o.Log.Section(section, title), func() {}
	if o.Phase != nil {
		endPhase = o.Phase(phase)
	}
	return func() { endPhase(); endSection() }
}

// hostname is this host's, for the logs of jobs: which of several runners it was.
func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "this host"
	}
	return name
}

// sizeOf is the size of an image's files, in bytes.
func sizeOf(image *oci.Image) int64 {
	var sum int64
	for _, d := range image.Disks {
		sum += d.Size
	}
	return sum
}

// SpecFor is where an image becomes a machine.
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
		Name:             o.Name,
		DomainXML:        image.DomainXML,
		Trusted:          o.Settings.Trusted,
		Template:         o.Settings.Domain,
		Architecture:     image.Architecture,
		Disks:            disks,
		CPUs:             o.Size.CPUs,
		Memory:           o.Size.Memory,
		MaxCPUs:          o.Settings.MaxCPUs,
		MaxMemory:        o.Settings.MaxMemory,
		DiskSize:         o.Size.Disk,
		Admission:        o.Admission,
		Network:          o.Settings.Network,
		Accel:            o.Settings.Accel,
		OmitBackingStore: o.Settings.OmitBackingStore,
		CloneDir:         o.Dirs.Overlays,
		JobDir:           filepath.Join(o.Dirs.Jobs, o.Name),
		SSHPort:          image.Guest.SSHPort(),
		Cache:            o.Cache,
		Record:           o.Record,
	}
}
