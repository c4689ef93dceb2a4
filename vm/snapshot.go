package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

// snapshotHostname is the host name that a guest is given before it is saved: it belongs to
// no job yet.
const snapshotHostname = "sardine"

// snapshotMachine describes the machine to package snapshot. d is the domain as it would
// boot.
func (s *starter) snapshotMachine(d *libvirtxml.Domain) *snapshot.Machine {
	spec := &s.spec
	m := &snapshot.Machine{
		Name: spec.Name, Dir: spec.SnapshotDir, Domain: d,
		Disks: spec.Disks, DiskSize: spec.DiskSize, SSHPort: spec.SSHPort,
		Cache: spec.Cache != nil,
	}
	if spec.Seed != nil {
		m.User = spec.Seed.User()
	}
	if spec.Tools != nil {
		m.Tools = spec.Tools.Path
	}
	if spec.SnapshotDir != "" && spec.Network == network.User {
		m.Network = snapshot.Network{User: true, Passt: passt.Installed(), Addresses: passt.GuestAddresses(spec.HostAccess), Resolver: passt.ResolverFiles()}
	}
	return m
}

// MakeSnapshot makes a snapshot of a machine, from which [Start] resumes others: it boots
// the machine, waits until the guest accepts the login, and saves it. If the snapshot
// exists, MakeSnapshot returns nil at once; otherwise it calls begin first. The error is a
// [snapshot.ErrNone] if there can be none: the machine is of a kind that cannot be saved,
// or another process is making it. Other errors are those of [Start] and
// [Started.WaitReady], for which timeout is the deadline.
//
// The machine has the name and the record of the job, so that sweep finds it. If it does not
// become ready, it is left to [Remove], with its console log. Otherwise MakeSnapshot
// removes it.
func MakeSnapshot(ctx context.Context, h *virt.Host, spec Spec, login guestssh.Login, timeout time.Duration, begin func()) (err error) {
	if spec.Seed != nil {
		spec.Seed = spec.Seed.WithHostname(snapshotHostname)
	}
	s := newStarter(h, spec)
	d, err := s.buildDomain(ctx)
	if err != nil {
		return err
	}
	draft, err := snapshot.Begin(h, s.snapshotMachine(d))
	if draft == nil || err != nil {
		return err
	}
	defer func() { err = errors.Join(err, draft.Close()) }()
	begin()
	err = s.bootAndSave(ctx, draft, d, login, timeout)
	if errors.Is(err, snapshot.ErrNone) {
		err = errors.Join(err, draft.Fail(err))
	}
	return err
}

// bootAndSave boots the machine and makes a snapshot of it.
func (s *starter) bootAndSave(ctx context.Context, draft *snapshot.Draft, d *libvirtxml.Domain, login guestssh.Login, timeout time.Duration) (err error) {
	snapshot.AddGenID(d)
	undo := &rollback.Stack{}
	err = s.boot(ctx, d, undo)
	dir, _ := s.spec.Files(s.spec.Name)
	if err == nil {
		// QEMU has opened the files. Other QEMUs run as the same user and must not reach
		// them; this one gets access again for the moment of the save.
		err = errors.Join(disk.ChownToRoot(s.shared), os.Chmod(dir, 0o700))
	}
	if err != nil {
		return errors.Join(err, undo.Run())
	}
	m := s.started(nil)
	booting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := m.WaitReady(booting, login); err != nil {
		return errors.Join(err, s.dir.Unlock())
	}
	defer func() {
		m.Close()
		err = errors.Join(err, undo.Run())
	}()
	// A guest that cannot resume fails here, and not in each of its clones.
	if err := snapshot.Settle(ctx, m.Run); err != nil {
		return noSnapshotOf(ctx, err)
	}
	if err := snapshot.Wake(ctx, m.Run); err != nil {
		return noSnapshotOf(ctx, fmt.Errorf("its guest could not resume: %w", err))
	}
	if err := m.Close(); err != nil && !errors.Is(err, io.EOF) {
		return noSnapshotOf(ctx, err)
	}
	return noSnapshotOf(ctx, s.save(ctx, draft, m, dir))
}

func (s *starter) save(ctx context.Context, draft *snapshot.Draft, m *Started, dir string) error {
	user, err := s.host.QEMUUser(ctx)
	if err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	source := snapshot.Source{
		Domain: m.dom, Dir: dir, Disks: s.spec.Disks, Overlays: s.overlays, HostKey: m.record.HostKey, Group: int(user.Gid),
	}
	if s.spec.Seed != nil {
		source.Key = s.spec.Seed.Login().Key
	}
	return draft.Save(ctx, source)
}

// noSnapshotOf makes err a [snapshot.ErrNone] of a machine that was ready, unless the
// machine is not its cause. ctx is the job's: a deadline that is not the job's counts
// against the machine.
func noSnapshotOf(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, errdefs.ErrDisconnected) || errors.Is(err, errdefs.ErrGuestStopped) {
		return err
	}
	return fmt.Errorf("%w: %w", snapshot.ErrNone, err)
}

// resumeIfPossible resumes the machine from a snapshot; nil if it has to boot. d is the
// domain as it would boot.
func (s *starter) resumeIfPossible(ctx context.Context, d *libvirtxml.Domain) (*Started, error) {
	found, possible, err := snapshot.Find(s.host, s.snapshotMachine(d))
	if !possible && errors.Is(err, snapshot.ErrNone) {
		return nil, nil
	}
	if err == nil {
		attempt := newStarter(s.host, s.spec)
		err = errors.Join(attempt.resume(ctx, found), found.Close())
		if err == nil {
			attempt.notes, attempt.warnings = append(s.notes, attempt.notes...), append(s.warnings, attempt.warnings...)
			return attempt.started(found), nil
		}
		if errors.Is(err, snapshot.ErrNone) {
			err = errors.Join(err, found.Distrust(err))
		}
	}
	if errors.Is(err, snapshot.ErrNone) {
		s.notes = append(s.notes, err.Error())
		return nil, nil
	}
	return nil, err
}

// resume resumes the machine from a snapshot. If it fails, it leaves nothing of the
// machine; the error is a [snapshot.ErrNone] if the snapshot is the cause.
func (s *starter) resume(ctx context.Context, from *snapshot.Snapshot) (err error) {
	disks, err := from.BackingDisks(s.spec.Disks)
	if err != nil {
		return err
	}
	saved, err := from.Load()
	if err != nil {
		return err
	}
	defer saved.Close()
	s.shared = slices.Concat(disks, s.spec.Disks)
	s.record.HostKey = from.HostKey
	undo := &rollback.Stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Run())
		}
	}()
	files, err := s.createFiles(ctx, disks, undo)
	if err != nil {
		return err
	}
	dir, _ := s.spec.Files(s.spec.Name)
	if err := saved.Rename(snapshot.Clone{Name: s.spec.Name, Dir: dir, Files: files}); err != nil {
		return err
	}
	network.DetachUser(saved.Domain)
	err = s.start(ctx, saved.Domain, undo, func(ctx context.Context, _ *libvirtxml.Domain) (err error) {
		s.dom, err = saved.Restore(ctx, s.host, filepath.Join(dir, "memory"))
		return err
	})
	if err != nil {
		return err
	}
	return s.unlinkOverlays()
}

// Resumed reports whether the machine resumed from a snapshot instead of booting.
func (s *Started) Resumed() bool { return s.snapshot != nil }

// SnapshotTime is when the snapshot was made that the machine resumed from; zero if it
// booted.
func (s *Started) SnapshotTime() time.Time {
	if s.snapshot == nil {
		return time.Time{}
	}
	return s.snapshot.Made
}

// Login returns the login of the guest. login is that of a guest that boots; a guest that
// resumed, or had waited for the job, still has the key that it was given at boot.
func (s *Started) Login(login guestssh.Login) guestssh.Login {
	if s.idle {
		return s.login
	}
	if s.snapshot != nil && s.snapshot.Seed != nil {
		login.Key, login.Late = s.snapshot.Seed, false
	}
	return login
}

// DistrustSnapshot prevents further use of the snapshot from which this machine did not
// become ready, for reason.
func (s *Started) DistrustSnapshot(reason error) error { return s.snapshot.Distrust(reason) }
