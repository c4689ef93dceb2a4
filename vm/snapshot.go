package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

// snapshotHostname is the name of a guest that is to be saved, if it is given one: it is
// no job's machine yet.
const snapshotHostname = "sardine"

// snapshotMachine describes the machine that would boot as d to package snapshot.
func snapshotMachine(d *libvirtxml.Domain, spec *Spec) *snapshot.Machine {
	m := &snapshot.Machine{
		Name: spec.Name, Dir: spec.SnapshotDir, Domain: d,
		Disks: spec.Disks, DiskSize: spec.DiskSize, SSHPort: spec.SSHPort,
		Cache: spec.Cache != nil,
	}
	if spec.Seed != nil {
		m.User = spec.Seed.User()
	}
	if spec.SnapshotDir != "" && spec.Network == network.User {
		m.Network = snapshot.Network{User: true, Passt: passt.Installed(), Addresses: passt.HostAddresses(), Resolver: passt.ResolverFiles()}
	}
	return m
}

// MakeSnapshot makes the snapshot of a machine, from which [Start] will make others:
// it boots the machine, waits until login gets in, and saves it. It returns nil at
// once if the snapshot is there, and calls begin if it has to be made. The error is
// a [snapshot.ErrNone] if there can be none: the machine is of a kind that cannot be saved,
// or another process is making it. Other errors are as with [Start] and
// [Guest.WaitReady], for which timeout is the deadline.
//
// The machine has the name and the record of the job for which it is made, so that
// whoever sweeps knows it. If it did not come up, it is left to [Remove], with the log
// of its console; otherwise nothing of it is left when MakeSnapshot returns.
func MakeSnapshot(ctx context.Context, h *virt.Host, spec Spec, login guestssh.Login, timeout time.Duration, begin func()) (err error) {
	spec.normalise()
	guest := newGuest(h, &spec)
	d, err := guest.design(ctx, &spec)
	if err != nil {
		return err
	}
	draft, err := snapshot.Begin(h, snapshotMachine(d, &spec))
	if draft == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, draft.Close()) }()
	begin()
	err = guest.bootAndSave(ctx, draft, d, &spec, login, timeout)
	if errors.Is(err, snapshot.ErrNone) {
		err = errors.Join(err, draft.Fail(err))
	}
	return err
}

// bootAndSave makes a snapshot of the machine that g will be.
func (g *Guest) bootAndSave(ctx context.Context, draft *snapshot.Draft, d *libvirtxml.Domain, spec *Spec, login guestssh.Login, timeout time.Duration) (err error) {
	if spec.Seed != nil {
		spec.Seed = spec.Seed.WithHostname(snapshotHostname) // the caller's is for the job's own machine
	}
	snapshot.AddGenID(d)
	undo := &rollback.Stack{}
	err = g.boot(ctx, d, spec, undo)
	dir, _ := machineFiles(spec)
	if err == nil {
		// QEMU has them open, and those of other machines, which are of the same user, have
		// no business there. For the moment of the save it has to be let in once more.
		err = errors.Join(disk.ChownToRoot(spec.Disks), os.Chmod(dir, 0o700))
	}
	if err != nil {
		return errors.Join(err, undo.Run())
	}
	booting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := g.WaitReady(booting, login); err != nil {
		return errors.Join(err, g.making.unlock())
	}
	defer func() {
		g.Close()
		err = errors.Join(err, undo.Run())
	}()
	// Better to know now than in every clone whether it can go on.
	if err := snapshot.Settle(ctx, g.Run); err != nil {
		return noSnapshotOf(ctx, err)
	}
	if err := snapshot.Wake(ctx, g.Run); err != nil {
		return noSnapshotOf(ctx, fmt.Errorf("its guest could not go on: %w", err))
	}
	if err := g.Close(); err != nil && !errors.Is(err, io.EOF) {
		return noSnapshotOf(ctx, err)
	}
	return noSnapshotOf(ctx, g.save(ctx, draft, spec, dir))
}

func (g *Guest) save(ctx context.Context, draft *snapshot.Draft, spec *Spec, dir string) error {
	owner, err := g.host.QEMUUser(ctx)
	if err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	source := snapshot.Source{
		Domain: g.dom, Dir: dir, Disks: spec.Disks, Overlays: g.overlays, HostKey: g.record.HostKey, Group: owner.GID,
	}
	if spec.Seed != nil {
		source.Key = spec.Seed.Login().Key
	}
	return draft.Save(ctx, source)
}

// noSnapshotOf is the [snapshot.ErrNone] of a machine that was ready, unless err is not its
// fault. ctx is the job's: that our own deadline has passed is the machine's.
func noSnapshotOf(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, virt.ErrDisconnected) || errors.Is(err, ErrGuestStopped) {
		return err
	}
	return fmt.Errorf("%w: %w", snapshot.ErrNone, err)
}

// resumeIfPossible starts the machine from its snapshot; false if it has to boot.
// d is the machine as it would boot.
func (g *Guest) resumeIfPossible(ctx context.Context, d *libvirtxml.Domain, spec *Spec) (bool, error) {
	s, possible, err := snapshot.Find(g.host, snapshotMachine(d, spec))
	if !possible && errors.Is(err, snapshot.ErrNone) {
		return false, nil
	}
	if err == nil {
		record := g.record
		err = errors.Join(g.resume(ctx, s, *spec), s.Close())
		if err == nil {
			return true, nil
		}
		g.record, g.dom, g.network, g.making = record, nil, nil, nil
		if errors.Is(err, snapshot.ErrNone) {
			err = errors.Join(err, s.Distrust(err))
		}
	}
	if errors.Is(err, snapshot.ErrNone) {
		g.Notes = append(g.Notes, err.Error())
		return false, nil
	}
	return false, err
}

// resume starts the machine from a snapshot. If it fails, nothing of the machine is
// left; the error is a [snapshot.ErrNone] if that was the fault of the snapshot.
func (g *Guest) resume(ctx context.Context, s *snapshot.Snapshot, spec Spec) (err error) {
	disks, err := s.BackingDisks(spec.Disks)
	if err != nil {
		return err
	}
	saved, err := s.Load()
	if err != nil {
		return err
	}
	defer saved.Close()
	image := spec.Disks
	spec.Disks = disks
	spec.Record.HostKey = s.HostKey
	g.record = spec.Record
	undo := &rollback.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	files, err := g.makeFiles(ctx, &spec, undo)
	if err != nil {
		return err
	}
	metadata, err := spec.Record.Metadata()
	if err != nil {
		return err
	}
	dir, _ := machineFiles(&spec)
	if err := saved.Rename(snapshot.Clone{Name: spec.Name, Metadata: metadata, Dir: dir, Files: files}); err != nil {
		return err
	}
	network.DetachUser(saved.Domain)
	err = g.launch(ctx, saved.Domain, &spec, undo, func(ctx context.Context, _ *libvirtxml.Domain) (err error) {
		g.dom, err = saved.Restore(ctx, g.host, filepath.Join(dir, "memory"))
		return err
	})
	if err != nil {
		return err
	}
	spec.Disks = append(disks, image...)
	if err := g.letGo(&spec); err != nil {
		return err
	}
	g.snapshot = s
	return nil
}

// Resumed says whether the machine goes on from a snapshot, and has not booted.
func (g *Guest) Resumed() bool { return g.snapshot != nil }

// SnapshotTime is when the snapshot was made from which the machine goes on; zero if
// it booted.
func (g *Guest) SnapshotTime() time.Time {
	if g.snapshot == nil {
		return time.Time{}
	}
	return g.snapshot.Made
}

// Login is how to log in to the guest, where login would let in one that booted: a guest
// that was given a key at boot still has that one.
func (g *Guest) Login(login guestssh.Login) guestssh.Login {
	if g.snapshot != nil && g.snapshot.Seed != nil {
		login.Key, login.Late = g.snapshot.Seed, false
	}
	return login
}

// DistrustSnapshot has nobody start a machine any more from the snapshot from which
// this one has not become ready, for reason.
func (g *Guest) DistrustSnapshot(reason error) error { return g.snapshot.Distrust(reason) }
