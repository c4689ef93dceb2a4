package executor

import (
	"context"
	"time"

	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/sweep"
	"gitlab-sardine-executor/vm/guestssh"
)

// A machineHost is what the stages need of the host: to start, find and remove the
// machine of their job. [libvirtHost] is the real one. The tests of the stages have a
// fake, and so need no libvirt.
type machineHost interface {
	// CPUs is the number of CPUs of the host.
	CPUs(ctx context.Context) (uint, error)
	// Start pulls the image and starts the machine; see [FetchAndClone].
	Start(ctx context.Context, o FetchAndCloneOptions) (instance, error)
	// Connect logs in to the machine that prepare started.
	Connect(ctx context.Context) (guest, error)
	// FlushCache writes the cache of the machine to the disk: the guest mounts it on dir.
	FlushCache(ctx context.Context, dir string) error
	// Keep sets the expiry of the machine. The error is [errdefs.ErrNoDomain] without one.
	Keep(ctx context.Context, until time.Time) error
	// Remove removes the machine and its files, if they exist: with stale, an old one before
	// another is started. See [removal.Remove] and [removal.Stale].
	Remove(ctx context.Context, stale bool) error
	// Sweep removes machines and files that no job owns; see [sweep.Run].
	Sweep(ctx context.Context, counted *metrics.Changes) ([]sweep.Swept, error)
	// UpdateGauges sets the gauges of machines, images, caches and snapshots.
	UpdateGauges(ctx context.Context, gauges *metrics.Changes) error
	Close() error
}

// A guest is the guest of a running machine, with a connection to it.
type guest interface {
	guestshell.Guest
	Close() error
}

// An instance is a machine that was started for a job, and its guest.
type instance interface {
	guest
	Info() instanceInfo
	// WaitReady waits until the guest accepts the login.
	WaitReady(ctx context.Context, login guestssh.Login) error
	// DistrustSnapshot prevents further use of the snapshot that the machine resumed
	// from.
	DistrustSnapshot(cause error) error
	// DropCache removes the machine's cache, so that no other job gets it.
	DropCache() error
}

// An instanceInfo describes an instance.
type instanceInfo struct {
	// Login to the guest.
	Login guestssh.Login
	// Address of the guest's SSH server, when it is ready.
	Address string
	// SnapshotTime is the age of the snapshot that the machine resumed from; zero if the
	// machine booted.
	SnapshotTime time.Time
	// Idle: the machine had waited for the job. Settled: its boot has ended, and the
	// directories for jobs are there.
	Idle, Settled bool
	// Tools: the machine has the disk with this host's gitlab-runner.
	Tools bool
	// Cache of the machine, without the directory; CacheName is for the log.
	Cache     guestshell.Cache
	CacheName string
}

func (i instanceInfo) resumed() bool { return !i.SnapshotTime.IsZero() }
