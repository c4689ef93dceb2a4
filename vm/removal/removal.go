// Package removal removes machines with everything that belongs to them.
package removal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/place"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// removeLockTimeout is how long a removal waits for a start that was told to end, or for
	// a sweep.
	removeLockTimeout = 500 * time.Millisecond
	// longLockTimeout is the same for a forced removal, and for one that makes room for the
	// next machine of that name.
	longLockTimeout = 20 * time.Second
)

// errLocked: another process starts or removes the machine.
var errLocked = errors.New("another process is still starting or removing it")

// errEnding: libvirt was asked to destroy the machine and is still doing so.
var errEnding = errors.New("the machine is still ending")

// Remove destroys the machine that a job knows by that name, and removes everything that
// belongs to it: domain, overlays, helper processes, job directory. A machine that does not exist is no error. If a domain
// of that name is not a job's, the error is [errdefs.ErrNotOurs] and nothing is touched.
//
// If ctx ends while libvirt destroys the domain, Remove returns an error: libvirt continues,
// and the files are removed without waiting for it.
//
// Remove waits half a second at most for another process that starts or removes the machine;
// then it removes what there is.
func Remove(ctx context.Context, h *virt.Host, name string, at place.Place) error {
	return remove(ctx, h, name, at, false)
}

// Stale is [Remove] before another machine of that name is started: it waits up to 20 s for
// another process that starts or removes the old one, and fails after that. That process
// would otherwise remove files of the new machine.
func Stale(ctx context.Context, h *virt.Host, name string, at place.Place) error {
	return remove(ctx, h, name, at, true)
}

func remove(ctx context.Context, h *virt.Host, name string, at place.Place, stale bool) error {
	domain, files, err := at.Locate(ctx, h, name)
	if err != nil {
		return err
	}
	if overlays, _ := files.Files(domain); !exists(files.JobDir) && !exists(overlays) {
		return withoutFiles(ctx, h, domain, name, files)
	}
	// The lock is for the whole machine, also if there are only overlays.
	lockCtx, timeout := context.Background(), removeLockTimeout
	if stale {
		lockCtx, timeout = ctx, longLockTimeout
	}
	locked, err := dirlock.Acquire(lockCtx, files.JobDir, timeout)
	if err != nil {
		return err
	}
	if locked != nil {
		defer locked.Unlock()
	} else if stale {
		return fmt.Errorf("machine %s: %w (waited %s)", name, errLocked, timeout)
	}
	if domain != name {
		if err := checkOwner(ctx, h, domain, name); err != nil {
			return err
		}
	}
	if err := Locked(ctx, h, domain, files); err != nil {
		return err
	}
	return idle.Forget(at.Storage(), name, domain)
}

// withoutFiles is [Remove] for a machine without files. It takes no lock, and so removes no
// directory: that may be one that a sweep has just made to lock it, and the next one of that
// name that of a machine.
func withoutFiles(ctx context.Context, h *virt.Host, domain, name string, at place.Place) error {
	if domain != name {
		if err := checkOwner(ctx, h, domain, name); err != nil {
			return err
		}
	}
	err := Destroy(ctx, h, domain)
	if err != nil && !errors.Is(err, errEnding) {
		return err
	}
	return errors.Join(err, endHelpers(ctx, h, domain, at), network.RemoveFilter(ctx, h), idle.Forget(at.Storage(), name, domain))
}

// checkOwner makes sure that the machine with that domain was idle and is now the one of
// the job, or was being given to it. A domain that is gone is nobody's.
func checkOwner(ctx context.Context, h *virt.Host, domain, machine string) error {
	dom, err := h.Domain(ctx, domain)
	if errors.Is(err, errdefs.ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	found, err := record.Read(ctx, dom)
	if err == nil && !found.Idle && found.Machine != machine {
		err = fmt.Errorf("%w: it is the one of %s", errdefs.ErrNotOurs, found.Machine)
	}
	if err != nil {
		return fmt.Errorf("domain %s, which %s has taken: %w", domain, machine, err)
	}
	return nil
}

// Locked is [Remove] by the name of the domain, for a caller that holds the lock on the job
// directory.
func Locked(ctx context.Context, h *virt.Host, name string, at place.Place) error {
	err := Destroy(ctx, h, name)
	switch {
	case errors.Is(err, errEnding):
		return errors.Join(err, removeFiles(ctx, h, name, at))
	case err != nil:
		return err
	}
	return errors.Join(removeFiles(ctx, h, name, at), network.RemoveFilter(ctx, h))
}

// A Rule decides which machines [Expired] removes.
type Rule struct {
	// Now is compared with the expiry time of the machines.
	Now time.Time
	// Force also removes machines that have not expired, and those of a job that is just
	// starting or removing its machine, after some seconds.
	Force bool
	// DryRun removes nothing.
	DryRun bool
	// Abandoned: no process looks after idle machines.
	Abandoned bool
}

// Applies reports whether the rule removes a machine with that record.
func (r Rule) Applies(m record.Record) bool {
	return r.Force || !r.Now.Before(m.Expires) || m.Idle && r.Abandoned
}

// Expired is [Remove] for a machine that [record.List] shows to have expired. It
// reports whether it removed the machine. It does not if the job is just starting or
// removing the machine, has removed it, or has extended its time.
func Expired(ctx context.Context, h *virt.Host, name string, at place.Place, rule Rule) (removed bool, err error) {
	locked, err := rule.lock(ctx, at.JobDir)
	if err != nil || locked == nil && !rule.Force && exists(at.JobDir) {
		return false, err
	}
	if locked != nil {
		defer locked.Unlock()
	}
	// Looked up with the lock held.
	dom, err := h.Domain(ctx, name)
	if errors.Is(err, errdefs.ErrNoDomain) {
		locked.RemoveIfEmpty()
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found, err := record.Read(ctx, dom)
	dom.Free()
	if err != nil || !rule.Applies(found) {
		return false, err
	}
	if rule.DryRun {
		return true, nil
	}
	if err := Locked(ctx, h, name, at); err != nil {
		return true, err
	}
	return true, idle.Forget(at.Storage(), found.Machine, name)
}

// lock locks a job directory, and creates it if necessary. It returns nil if another
// process has it locked, or if it would be created for a dry run.
func (r Rule) lock(ctx context.Context, path string) (*dirlock.Lock, error) {
	if r.DryRun {
		locked, err := dirlock.Try(path)
		return locked, ignoring(err, fs.ErrNotExist)
	}
	timeout := removeLockTimeout
	if r.Force {
		timeout = longLockTimeout
	}
	return dirlock.Acquire(ctx, path, timeout)
}

// Abandoned removes the files of a machine that has no domain, unless another process
// is just starting it, and reports whether there were any. With dryRun it only reports.
// If there is a domain of that name, also one that is not a job's, the files stay.
func Abandoned(ctx context.Context, h *virt.Host, name string, at place.Place, dryRun bool) (found bool, err error) {
	created := false
	if !dryRun {
		if err := os.MkdirAll(filepath.Dir(at.JobDir), 0o700); err != nil {
			return false, fmt.Errorf("create the job's directory: %w", err)
		}
		created = os.Mkdir(at.JobDir, 0o700) == nil
	}
	locked, err := dirlock.Try(at.JobDir)
	switch {
	case dryRun && errors.Is(err, fs.ErrNotExist): // there are only overlays
	case errors.Is(err, fs.ErrNotExist): // another process has just removed it
		return false, nil
	case err != nil || locked == nil:
		return false, err
	default:
		defer locked.Unlock()
	}
	// Looked up with the lock held: the process that created the directory has ended, and a
	// domain that it started is known by now.
	if _, err := h.Domain(ctx, name); !errors.Is(err, errdefs.ErrNoDomain) {
		if created {
			err = errors.Join(err, ignoring(os.Remove(at.JobDir), fs.ErrNotExist))
		}
		return false, err
	}
	overlays, _ := at.Files(name)
	if created && !exists(overlays) { // everything has been removed since the caller saw it
		// A removal that waited for the lock in vain may have removed this directory, too.
		return false, ignoring(os.Remove(at.JobDir), fs.ErrNotExist)
	}
	if dryRun {
		return true, nil
	}
	return true, removeFiles(ctx, h, name, at)
}

// Destroy destroys the domain if it exists and is a job's, and releases its addresses. The
// error is errEnding if ctx ended first.
func Destroy(ctx context.Context, h *virt.Host, name string) error {
	dom, err := h.Domain(ctx, name)
	if errors.Is(err, errdefs.ErrNoDomain) {
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
			return fmt.Errorf("%w: %w", errEnding, err)
		}
	}
	if errors.Is(err, errdefs.ErrNoDomain) {
		err = nil // it has ended by itself
	}
	if errors.Is(err, errdefs.ErrNotOurs) {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	if err == nil {
		dhcp.GiveBack(ctx, h, nics)
	}
	return err
}

// removeFiles removes the files and processes that a machine leaves on the host. Its domain
// must be gone, and its job directory should be locked: a sweep that finds no domain then
// finds the lock.
func removeFiles(ctx context.Context, h *virt.Host, name string, at place.Place) error {
	overlays, _ := at.Files(name)
	return errors.Join(endHelpers(ctx, h, name, at), os.RemoveAll(overlays), os.RemoveAll(at.JobDir))
}

// endHelpers ends the processes of a machine, and its offer to jobs.
func endHelpers(ctx context.Context, h *virt.Host, name string, at place.Place) error {
	ctx, cancel := rollback.Context(ctx)
	defer cancel()
	return errors.Join(passt.New(h.QEMUUser, name, at.OverlayDir, at.JobDir).Stop(ctx), idle.Withdraw(at.Storage(), name))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// ignoring returns err, or nil if err is the ignored error.
func ignoring(err, ignored error) error {
	if errors.Is(err, ignored) {
		return nil
	}
	return err
}
