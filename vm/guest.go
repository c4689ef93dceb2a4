package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// runPoll is how often a driver looks whether a guest that runs a command is
	// still there.
	runPoll = 2 * time.Second
	// stopGrace is how long after a guest's connection broke libvirt may take to
	// notice that the guest has stopped.
	stopGrace = 3 * time.Second
)

// ErrEnding: libvirt was asked to end the machine and had not done so in time. It
// goes on by itself.
var ErrEnding = errors.New("the machine is still ending")

// A Guest is a machine that runs.
type Guest struct {
	// Notes and Warnings say what the machine got otherwise than the image or the
	// settings asked for, one line each.
	Notes, Warnings []string

	host   *virt.Host
	dom    *virt.Domain
	name   string
	record record.Record
	jobDir string
	cache  cache.Cache
	// overlays are the files of its disks, by the names of the disks; while it is
	// started.
	overlays map[string]string
	// snapshot is what it was started from; nil if it booted.
	snapshot *snapshot.Snapshot
	network  network.Network // nil for a guest that was looked up
	making   *jobDir         // locked while the machine is started
	client   *guestssh.Client
}

// Find finds the machine of that name. The error is [virt.ErrNoDomain] if there is
// none and [record.ErrNotOurs] if the domain is not a job's.
func Find(ctx context.Context, h *virt.Host, name, jobDir string) (*Guest, error) {
	dom, err := h.Domain(ctx, name)
	if err != nil {
		return nil, err
	}
	record, err := record.Read(ctx, dom)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", name, err)
	}
	return &Guest{host: h, dom: dom, name: name, record: record, jobDir: jobDir}, nil
}

// Name of the domain.
func (g *Guest) Name() string { return g.name }

// Record is what the domain says of its job.
func (g *Guest) Record() record.Record { return g.record }

// Close ends the connections to the guest, which goes on.
func (g *Guest) Close() error {
	if g.client == nil {
		return nil
	}
	err := g.client.Close()
	g.client = nil
	return err
}

// Connect logs in to a guest that [Guest.WaitReady] found ready before, in this
// process or another, and insists on the host key that it saw, and on the machine: the
// error is [network.ErrContested] if another one answers at its address.
func (g *Guest) Connect(ctx context.Context, login guestssh.Login) error {
	if g.client != nil {
		return nil
	}
	if g.record.Address == "" || g.record.HostKey == "" {
		return fmt.Errorf("machine %s was never ready: its record has no address", g.name)
	}
	pinned, err := guestssh.ParseHostKey(g.record.HostKey)
	if err != nil {
		return fmt.Errorf("machine %s: %w", g.name, err)
	}
	conn, err := guestssh.Dial(ctx, g.record.Address)
	if err != nil {
		return fmt.Errorf("%w: connect to %s: %w", guestssh.ErrLost, g.record.Address, err)
	}
	g.client, err = g.logIn(ctx, conn, login, pinned)
	return err
}

// Run runs a command in the guest, to which [Guest.Connect] or
// [Guest.WaitReady] have connected, and returns its exit status; 128+n if
// signal n ended it. The error is [guestssh.ErrLost] if the connection broke and
// [ErrGuestStopped] if the guest did.
func (g *Guest) Run(ctx context.Context, cmd guestssh.Command) (int, error) {
	running, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go g.watch(running, runPoll, nil, giveUp)
	status, err := g.client.Run(running, cmd)
	if err == nil {
		return status, nil
	}
	if cause := context.Cause(running); cause != nil {
		err = cause
	} else if gone := g.stopped(ctx, err); gone != nil {
		err = gone
	}
	return 0, g.withConsole(err)
}

// Shell opens the login shell of the user on a terminal, until it ends: see
// [guestssh.Client.Shell].
func (g *Guest) Shell(ctx context.Context, stdin *os.File, stdout, stderr io.Writer) (int, error) {
	return g.client.Shell(ctx, stdin, stdout, stderr)
}

// stopped is the [ErrGuestStopped] of a guest to which the connection was lost
// because it stopped; nil if there is another cause. The connection breaks before
// libvirt notices that QEMU has ended.
func (g *Guest) stopped(ctx context.Context, lost error) error {
	if !errors.Is(lost, guestssh.ErrLost) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	for {
		if gone := g.alive(ctx); errors.Is(gone, ErrGuestStopped) {
			return gone
		}
		select {
		case <-time.After(bootPoll):
		case <-ctx.Done():
			return nil
		}
	}
}

// Remove ends a machine and removes all that it had: domain, overlays, helper
// processes, job directory. What is not there any more is no error. A domain of
// that name that is not a job's is [record.ErrNotOurs], and nothing is touched.
//
// If ctx ends while libvirt ends the domain, the error is [ErrEnding]: libvirt
// does not stop, and what the machine had is removed without waiting for it.
func Remove(ctx context.Context, h *virt.Host, name, cloneDir, jobDir string) error {
	locked, err := lockToRemove(name, cloneDir, jobDir)
	if err != nil {
		return err
	}
	if locked != nil {
		defer locked.unlock()
	}
	return remove(ctx, h, name, cloneDir, jobDir)
}

// remove is [Remove] for who holds the lock on the machine's directory.
func remove(ctx context.Context, h *virt.Host, name, cloneDir, jobDir string) error {
	err := destroy(ctx, h, name)
	switch {
	case errors.Is(err, ErrEnding):
		return errors.Join(err, removeFiles(ctx, h, name, cloneDir, jobDir))
	case err != nil:
		return err
	}
	return errors.Join(removeFiles(ctx, h, name, cloneDir, jobDir), network.RemoveFilter(ctx, h))
}

// A RemoveRule says which machines [RemoveExpired] removes.
type RemoveRule struct {
	// Now is compared with what the machines' records say.
	Now time.Time
	// Force removes machines that have not expired, too, and gives a job that makes or
	// removes one no more than some seconds to come to an end.
	Force bool
	// DryRun removes nothing.
	DryRun bool
}

// RemoveExpired is [Remove] for a machine that [record.List] shows to have
// expired, and reports whether it removed it: not if its job makes or removes it at this
// moment, has removed it since, or has given it more time.
func RemoveExpired(ctx context.Context, h *virt.Host, name, cloneDir, jobDir string, rule RemoveRule) (removed bool, err error) {
	locked, err := rule.lock(ctx, jobDir)
	if err != nil || locked == nil && !rule.Force && exists(jobDir) {
		return false, err
	}
	if locked != nil {
		defer locked.unlock()
	}
	// Asked with the lock held.
	dom, err := h.Domain(ctx, name)
	if errors.Is(err, virt.ErrNoDomain) {
		locked.removeIfEmpty()
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found, err := record.Read(ctx, dom)
	dom.Free()
	if err != nil || !rule.Force && rule.Now.Before(found.Expires) {
		return false, err
	}
	if rule.DryRun {
		return true, nil
	}
	return true, remove(ctx, h, name, cloneDir, jobDir)
}

// lock locks the directory of a machine, which is made if it is not there; nil if another
// has it, or if it would have to be made for nothing.
func (r RemoveRule) lock(ctx context.Context, path string) (*jobDir, error) {
	if r.DryRun {
		locked, err := lockDir(path)
		return locked, ignoring(err, fs.ErrNotExist)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock the job's directory: %w", err)
	}
	patience := removeLockTimeout
	if r.Force {
		patience = forceLockTimeout
	}
	return holdJobDir(ctx, path, patience)
}

// destroy ends the domain if it is there and a job's, and gives its addresses back. The
// error is [ErrEnding] if ctx ended first.
func destroy(ctx context.Context, h *virt.Host, name string) error {
	dom, err := h.Domain(ctx, name)
	if errors.Is(err, virt.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	var nics []dhcp.NIC
	if _, err = record.Read(ctx, dom); err == nil {
		nics, _ = dhcp.NICs(ctx, dom)
		if err = dom.Destroy(ctx); err != nil && ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrEnding, err)
		}
	}
	if errors.Is(err, virt.ErrNoDomain) {
		err = nil // it ended by itself in the meantime
	}
	if errors.Is(err, record.ErrNotOurs) {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	if err == nil {
		dhcp.GiveBack(ctx, h, nics)
	}
	return err
}
