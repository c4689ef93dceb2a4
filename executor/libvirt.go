package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/gauges"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/sweep"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

// OpenHost connects to the libvirt in the settings.
func OpenHost(ctx context.Context, settings *config.Settings) (*virt.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, LibvirtTimeout)
	defer cancel()
	return virt.Open(ctx, settings.Defaults.Connect)
}

// Connect logs in to a machine that prepare started.
func Connect(ctx context.Context, host *virt.Host, name, jobDir string) (*vm.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	guest, err := vm.Find(ctx, host, name, jobDir)
	if errors.Is(err, errdefs.ErrNoDomain) && !errors.Is(err, errdefs.ErrPoweredOff) {
		return nil, fmt.Errorf("the job's machine is gone (its QEMU died, or prepare never ran): %w", err)
	}
	if err != nil {
		return nil, err
	}
	login, err := guestssh.LoadLogin(guest.JobDir())
	if err != nil {
		return nil, err
	}
	return guest, guest.Connect(ctx, login)
}

// A libvirtHost is a libvirt connection for one job.
type libvirtHost struct {
	*virt.Host
	dirs    config.Dirs
	machine string // name
}

func (h *libvirtHost) jobDir() string { return h.dirs.Job(h.machine) }

func (h *libvirtHost) place() vm.Place {
	return vm.Place{OverlayDir: h.dirs.Overlays, JobDir: h.jobDir()}
}

// CPUs of the host, as libvirt counts them.
func (h *libvirtHost) CPUs(ctx context.Context) (uint, error) {
	size, err := h.Size(ctx)
	return size.CPUs, err
}

// Start checks what the cache needs before it pulls the image.
func (h *libvirtHost) Start(ctx context.Context, o FetchAndCloneOptions) (instance, error) {
	if o.Settings.Cache == config.CacheShare {
		if err := cache.CheckShares(h.Host); err != nil {
			return nil, err
		}
	}
	started, err := FetchAndClone(ctx, h.Host, o)
	if err != nil {
		return nil, err
	}
	return libvirtInstance{started.Guest, started.Login}, nil
}

// Connect logs in with the login that prepare saved.
func (h *libvirtHost) Connect(ctx context.Context) (guest, error) {
	connected, err := Connect(ctx, h.Host, h.machine, h.jobDir())
	if err != nil {
		return nil, err
	}
	return connected, nil
}

// FlushCache does nothing if the machine has no cache disk, or was never ready.
func (h *libvirtHost) FlushCache(ctx context.Context, dir string) error {
	guest, err := vm.Find(ctx, h.Host, h.machine, h.jobDir())
	if err != nil || guest.CacheMode() != cache.Disk || guest.Record().Address == "" {
		return nil // Remove reports the error
	}
	login, err := guestssh.LoadLogin(guest.JobDir())
	if err == nil {
		err = guest.Connect(ctx, login)
	}
	if err == nil {
		defer guest.Close()
		err = guestshell.FlushCache(ctx, guest, dir)
	}
	if err != nil {
		return fmt.Errorf("cache %s: %w", guest.Record().Cache, err)
	}
	return nil
}

// Keep changes the record in the machine's domain.
func (h *libvirtHost) Keep(ctx context.Context, until time.Time) error {
	domain, _, err := h.place().Locate(ctx, h.Host, h.machine)
	if err != nil {
		return err
	}
	return record.Keep(ctx, h.Host, domain, until)
}

// Remove also removes files without a domain.
func (h *libvirtHost) Remove(ctx context.Context, stale bool) error {
	if stale {
		return removal.Stale(ctx, h.Host, h.machine, h.place())
	}
	return removal.Remove(ctx, h.Host, h.machine, h.place())
}

// Sweep removes what has expired by now.
func (h *libvirtHost) Sweep(ctx context.Context, counted *metrics.Changes) ([]sweep.Swept, error) {
	return sweep.Run(ctx, h.Host, h.dirs, sweep.Options{Now: time.Now(), Metrics: counted})
}

func (h *libvirtHost) UpdateGauges(ctx context.Context, counted *metrics.Changes) error {
	return gauges.Update(ctx, h.Host, h.dirs, counted)
}

// A libvirtInstance is a machine that libvirt started, with the login of its guest.
type libvirtInstance struct {
	*vm.Started
	login guestssh.Login
}

// Info is current: a guest that is ready has an address.
func (i libvirtInstance) Info() instanceInfo {
	info := instanceInfo{
		Login:     i.login,
		Address:   i.Record().Address,
		Idle:      i.Idle(),
		Settled:   i.Settled(),
		Tools:     i.HasTools(),
		Cache:     guestshell.Cache{Mode: string(i.CacheMode()), Label: cache.Label, Fresh: i.CacheIsFresh()},
		CacheName: i.Record().Cache,
	}
	if i.Resumed() {
		info.SnapshotTime = i.SnapshotTime()
	}
	return info
}
