package vm

import (
	"context"
	"crypto/rand"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// settleTimeout bounds how long a guest that lets us in may go on with its boot.
	settleTimeout = 90 * time.Second
	// saveTimeout bounds how long libvirt may write the guest's memory.
	saveTimeout = 5 * time.Minute
	// wakeTimeout bounds what a guest is told when it goes on.
	wakeTimeout = 20 * time.Second
	// snapshotHostname is the guest's, if it is given one: it is nobody's machine yet.
	snapshotHostname = "sardine"
)

// settleScript waits until the guest has done what it does at boot.
//
//go:embed settle.sh
var settleScript string

// wakeScript sets a guest right that was saved some time ago.
//
//go:embed wake.sh
var wakeScript string

// MakeSnapshot makes the snapshot of a machine, from which [Start] will make others:
// it boots the machine, waits until login gets in, and saves it. It returns nil at
// once if the snapshot is there, and calls begin if it has to be made. The error is
// an [ErrNoSnapshot] if there can be none: the machine is of a kind that cannot be saved,
// or another process is making it. Other errors are as with [Start] and
// [Guest.WaitReady], for which timeout is the deadline.
//
// The machine has the name and the record of the job for which it is made, so that
// whoever sweeps knows it. If it did not come up, it is left to [Remove], with the log
// of its console; otherwise nothing of it is left when MakeSnapshot returns.
func MakeSnapshot(ctx context.Context, h *Host, spec Spec, login guestssh.Login, timeout time.Duration, begin func()) (err error) {
	spec.normalise()
	guest := newGuest(h, &spec)
	d, err := guest.design(ctx, &spec)
	if err != nil {
		return err
	}
	if err := h.snapshotObstacle(d, &spec); err != nil {
		return err
	}
	key, err := h.snapshotKey(d, &spec)
	if err != nil {
		return err
	}
	s := snapshotOf(spec.SnapshotDir, key)
	if err := s.open(); err == nil {
		return s.close()
	} else if errors.As(err, new(obstacleError)) {
		return err
	}
	lock, err := snapshotLock(s.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if got, err := lock.TryLock(); err != nil || !got {
		return noSnapshot("somebody is making or using it")
	}
	if err := s.read(); !errors.Is(err, ErrNoSnapshot) {
		return err // somebody was faster
	}
	if err := s.makeRoom(); err != nil {
		return err
	}
	begin()
	err = s.make(ctx, guest, d, &spec, login, timeout)
	if errors.Is(err, ErrNoSnapshot) {
		err = errors.Join(err, s.giveUp(err))
	}
	return err
}

// make makes the snapshot of the machine that guest will be.
func (s *snapshot) make(ctx context.Context, guest *Guest, d *libvirtxml.Domain, spec *Spec, login guestssh.Login, timeout time.Duration) (err error) {
	if spec.Seed != nil {
		spec.Seed = spec.Seed.WithHostname(snapshotHostname) // the caller's is for the job's own machine
	}
	identify(d)
	undo := &rollback.Stack{}
	err = guest.boot(ctx, d, spec, undo)
	files, _ := machineFiles(spec)
	if err == nil {
		// QEMU has them open, and those of other machines, which are of the same user, have
		// no business there. For the moment of the save it has to be let in once more.
		err = errors.Join(disk.ChownToRoot(spec.Disks), os.Chmod(files, 0o700))
	}
	if err != nil {
		return errors.Join(err, undo.Run())
	}
	booting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := guest.WaitReady(booting, login); err != nil {
		return errors.Join(err, guest.making.unlock())
	}
	defer func() {
		guest.Close()
		err = errors.Join(err, undo.Run())
	}()
	// Better to know now than in every clone whether it can go on.
	if err := guest.settle(ctx); err != nil {
		return noSnapshotOf(ctx, err)
	}
	if err := guest.wake(ctx); err != nil {
		return noSnapshotOf(ctx, fmt.Errorf("its guest could not go on: %w", err))
	}
	if err := guest.Close(); err != nil && !errors.Is(err, io.EOF) {
		return noSnapshotOf(ctx, err)
	}
	s.HostKey = guest.record.HostKey
	if spec.Seed != nil {
		s.Seed = spec.Seed.Login().Key
	}
	if err := s.take(ctx, guest, spec); err != nil {
		return noSnapshotOf(ctx, err)
	}
	return nil
}

// noSnapshotOf is the [ErrNoSnapshot] of a machine that was ready, unless err is not its
// fault. ctx is the job's: that our own deadline has passed is the machine's.
func noSnapshotOf(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, virt.ErrDisconnected) || errors.Is(err, ErrGuestStopped) {
		return err
	}
	return noSnapshot("%w", err)
}

// identify gives a machine a generation ID, by which the guest's kernel sees that it
// goes on as another one, and takes other random numbers (Linux 5.18, Windows
// Server 2012). QEMU has it for PCs alone.
func identify(d *libvirtxml.Domain) {
	if d.OS.Type.Arch == "x86_64" && d.Features != nil && d.Features.ACPI != nil {
		d.GenID = &libvirtxml.DomainGenID{Value: uuid.NewString()}
	}
}

// take saves the machine and makes a snapshot of what it was.
func (s *snapshot) take(ctx context.Context, g *Guest, spec *Spec) (err error) {
	dir := s.dir + halfMade
	// What a process that died while it made one has left, and one of another key.
	for _, old := range []string{dir, s.dir} {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove an old snapshot: %w", err)
		}
	}
	if err := g.host.makePrivateDir(ctx, dir); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	files, _ := machineFiles(spec)
	if err := os.Chmod(files, 0o711); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	memory := filepath.Join(dir, snapshotMemory)
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	if err := g.dom.Save(ctx, memory); err != nil {
		return err
	}
	if err := os.Chmod(memory, 0o400); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	if err := s.gather(g, spec, dir); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	return os.Rename(dir, s.dir)
}

// makePrivateDir makes a directory that nobody can look into but this user, and QEMU.
func (h *Host) makePrivateDir(ctx context.Context, dir string) error {
	owner, err := h.qemuOwner(ctx)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil || owner.gid == os.Getegid() {
		return err
	}
	return errors.Join(os.Chown(dir, -1, owner.gid), os.Chmod(dir, 0o710))
}

// gather takes the files of a saved machine to dir and writes the note.
func (s *snapshot) gather(g *Guest, spec *Spec, dir string) error {
	machine, _ := machineFiles(spec)
	s.Files = machine
	for _, image := range spec.Disks {
		path, written := g.overlays[image.Name]
		if !written {
			continue
		}
		file := filepath.Base(path)
		if err := os.Rename(path, filepath.Join(dir, file)); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, file), 0o444); err != nil {
			return err
		}
		s.Disks = append(s.Disks, snapshotDisk{Name: image.Name, File: file, Was: path})
	}
	for _, file := range []string{nvramFile, seed.HostKeyFile} {
		err := os.Rename(filepath.Join(machine, file), filepath.Join(dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := disk.ChownDirToRoot(dir); err != nil {
		return err
	}
	return s.writeNote(dir)
}

// settle waits until the guest has booted to the end.
func (g *Guest) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return g.tell(ctx, settleScript)
}

// wake tells a guest that has just gone on what it cannot know: how late it is, and
// that others have gone on with the same random numbers.
func (g *Guest) wake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	now := time.Now().Add(500 * time.Millisecond).Unix() // rounded
	return g.tell(ctx, fmt.Sprintf("now=%d seed=%s%s\n%s", now, rand.Text(), rand.Text(), wakeScript))
}

// asRoot runs a script, which it reads, as root.
const asRoot = `sh -c 'if [ "$(id -u)" = 0 ]; then exec sh; else exec sudo -n sh; fi'`

// tell runs one of our own scripts in the guest, as root.
func (g *Guest) tell(ctx context.Context, script string) error {
	var said strings.Builder
	status, err := g.Run(ctx, guestssh.Command{Line: asRoot, Stdin: strings.NewReader(script), Stdout: io.Discard, Stderr: &said})
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("status %d: %.200s", status, lastLine(said.String()))
	}
	return nil
}
