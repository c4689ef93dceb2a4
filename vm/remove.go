package vm

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
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// removeLockTimeout is how long a removal waits for a start that was told to end, or for
	// a sweep.
	removeLockTimeout = 500 * time.Millisecond
	// forceLockTimeout is the same for a forced removal.
	forceLockTimeout = 20 * time.Second
)

// Remove destroys a machine and removes everything that belongs to it: domain, overlays,
// helper processes, job directory. A machine that does not exist is no error. If a domain
// of that name is not a job's, the error is [record.ErrNotOurs] and nothing is touched.
//
// If ctx ends while libvirt destroys the domain, Remove returns an error: libvirt continues,
// and the files are removed without waiting for it.
func Remove(ctx context.Context, h *virt.Host, name string, place Place) error {
	locked, err := lockToRemove(name, place)
	if err != nil {
		return err
	}
	if locked != nil {
		defer locked.Unlock()
	}
	return remove(ctx, h, name, place)
}

// remove is [Remove] for a caller that holds the lock on the job directory.
func remove(ctx context.Context, h *virt.Host, name string, place Place) error {
	err := destroy(ctx, h, name)
	switch {
	case errors.Is(err, errEnding):
		return errors.Join(err, removeFiles(ctx, h, name, place))
	case err != nil:
		return err
	}
	return errors.Join(removeFiles(ctx, h, name, place), network.RemoveFilter(ctx, h))
}

// A RemoveRule decides which machines [RemoveExpired] removes.
type RemoveRule struct {
	// Now is compared with the expiry time of the machines.
	Now time.Time
	// Force also removes machines that have not expired, and those of a job that is just
	// starting or removing its machine, after some seconds.
	Force bool
	// DryRun removes nothing.
	DryRun bool
}

// RemoveExpired is [Remove] for a machine that [record.List] shows to have expired. It
// reports whether it removed the machine. It does not if the job is just starting or
// removing the machine, has removed it, or has extended its time.
func RemoveExpired(ctx context.Context, h *virt.Host, name string, place Place, rule RemoveRule) (removed bool, err error) {
	locked, err := rule.lock(ctx, place.JobDir)
	if err != nil || locked == nil && !rule.Force && exists(place.JobDir) {
		return false, err
	}
	if locked != nil {
		defer locked.Unlock()
	}
	// Looked up with the lock held.
	dom, err := h.Domain(ctx, name)
	if errors.Is(err, virt.ErrNoDomain) {
		locked.RemoveIfEmpty()
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
	return true, remove(ctx, h, name, place)
}

// lock locks a job directory, and creates it if necessary. It returns nil if another
// process has it locked, or if it would be created for a dry run.
func (r RemoveRule) lock(ctx context.Context, path string) (*dirlock.Lock, error) {
	if r.DryRun {
		locked, err := dirlock.Try(path)
		return locked, ignoring(err, fs.ErrNotExist)
	}
	timeout := removeLockTimeout
	if r.Force {
		timeout = forceLockTimeout
	}
	return dirlock.Acquire(ctx, path, timeout)
}

// RemoveAbandoned removes the files of a machine that has no domain, unless another process
// is just starting it, and reports whether there were any. With dryRun it only reports.
// If there is a domain of that name, also one that is not a job's, the files stay.
func RemoveAbandoned(ctx context.Context, h *virt.Host, name string, place Place, dryRun bool) (found bool, err error) {
	created := false
	if !dryRun { // see lockToRemove
		if err := os.MkdirAll(filepath.Dir(place.JobDir), 0o700); err != nil {
			return false, fmt.Errorf("create the job's directory: %w", err)
		}
		created = os.Mkdir(place.JobDir, 0o700) == nil
	}
	locked, err := dirlock.Try(place.JobDir)
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
	if _, err := h.Domain(ctx, name); !errors.Is(err, virt.ErrNoDomain) {
		if created {
			err = errors.Join(err, os.Remove(place.JobDir))
		}
		return false, err
	}
	overlays, _ := place.files(name)
	if created && !exists(overlays) { // everything has been removed since the caller saw it
		return false, os.Remove(place.JobDir)
	}
	if dryRun {
		return true, nil
	}
	return true, removeFiles(ctx, h, name, place)
}

// destroy destroys the domain if it exists and is a job's, and releases its addresses. The
// error is errEnding if ctx ended first.
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
			return fmt.Errorf("%w: %w", errEnding, err)
		}
	}
	if errors.Is(err, virt.ErrNoDomain) {
		err = nil // it has ended by itself
	}
	if errors.Is(err, record.ErrNotOurs) {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	if err == nil {
		dhcp.GiveBack(ctx, h, nics)
	}
	return err
}

// removeFiles removes the files and processes that a machine leaves on the host. Its domain
// must be gone, and its job directory should be locked: see lockToRemove.
func removeFiles(ctx context.Context, h *virt.Host, name string, place Place) error {
	ctx, cancel := rollback.Context(ctx)
	defer cancel()
	overlays, _ := place.files(name)
	return errors.Join(
		passt.New(h, name, place.OverlayDir, place.JobDir).Stop(ctx),
		os.RemoveAll(overlays), os.RemoveAll(place.JobDir))
}

// lockToRemove locks the job directory of a machine until the machine has been removed: a
// sweep that finds no domain then finds the lock. It waits a short time for a process that
// is just starting the machine; if that does not end, the lock is nil. It is also nil if
// the machine has no files.
func lockToRemove(name string, place Place) (*dirlock.Lock, error) {
	overlays, _ := place.files(name)
	if !exists(place.JobDir) && !exists(overlays) {
		return nil, nil
	}
	// The lock is for the whole machine, also if there are only overlays.
	return dirlock.Acquire(context.Background(), place.JobDir, removeLockTimeout)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
