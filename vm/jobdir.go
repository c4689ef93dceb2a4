package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// jobDirTimeout is how long a machine that is to be made waits for its directory
	// while somebody removes what lies there.
	jobDirTimeout = 5 * time.Second
	// lockPoll is how often a lock is tried that another process has.
	lockPoll = 20 * time.Millisecond
	// removeLockTimeout is how long who removes a machine waits for who makes it, which
	// was told to end, or for a sweep.
	removeLockTimeout = 500 * time.Millisecond
	// forceLockTimeout is the same for who removes it against all.
	forceLockTimeout = 20 * time.Second
)

// A jobDir is the directory of a machine, locked. Whoever makes the machine holds
// it until the domain runs, which then speaks for it; whoever sweeps it holds it while
// everything of the machine goes.
type jobDir struct {
	path string
	dir  *os.File
}

// makeJobDir makes the directory of a machine. What a dead process left under
// this name goes: no domain has it.
func makeJobDir(ctx context.Context, path string) (*jobDir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the job's directory: %w", err)
	}
	locked, err := holdJobDir(ctx, path, jobDirTimeout)
	if err != nil {
		return nil, err
	}
	if locked == nil {
		return nil, fmt.Errorf("the job's directory %s is another process's: is a second prepare of this job running?", path)
	}
	if err := locked.clear(); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the job's directory: %w", err), locked.unlock())
	}
	return locked, nil
}

// holdJobDir makes the directory if it is not there, and locks it; nil if somebody
// else has it locked for that long.
func holdJobDir(ctx context.Context, path string, timeout time.Duration) (*jobDir, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errLocked)
	defer cancel()
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the job's directory: %w", err)
		}
		locked, err := lockDir(path)
		if locked != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return locked, err
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errLocked) {
				return nil, cause
			}
			return nil, nil
		}
	}
}

var errLocked = errors.New("somebody else holds the lock")

// lockDir locks a directory; nil if somebody else has it locked. The error is
// [fs.ErrNotExist] if there is none.
func lockDir(path string) (*jobDir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock the job's directory: %w", err)
	}
	locked := &jobDir{path, dir}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = locked.check()
	}
	if err == nil {
		return locked, nil
	}
	dir.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("lock the job's directory: %w", err)
}

// check is [fs.ErrNotExist] if the directory that is locked is no longer the one of
// that name: it was removed before we had it, and perhaps made anew.
func (d *jobDir) check() error {
	ours, err := d.dir.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(d.path)
	if err == nil && !os.SameFile(ours, named) {
		err = fs.ErrNotExist
	}
	return err
}

// clear removes what is in the directory.
func (d *jobDir) clear() error {
	entries, err := os.ReadDir(d.path)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(d.path, entry.Name())))
	}
	return err
}

// removeIfEmpty removes a directory that was there, or was made, for the lock alone.
func (d *jobDir) removeIfEmpty() {
	if d != nil {
		_ = os.Remove(d.path)
	}
}

func (d *jobDir) unlock() error { return d.dir.Close() }

// lockToRemove locks the directory of a machine for who removes the machine, from
// before its domain goes until all has gone: a sweep that finds no domain finds the
// lock. Whoever makes the machine at this moment is waited for, but not long: then the
// lock is nil, as it is where the machine has no files.
func lockToRemove(name, cloneDir, jobDir string) (*jobDir, error) {
	if !exists(jobDir) && !exists(filepath.Join(cloneDir, name)) {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(jobDir), 0o700); err != nil {
		return nil, fmt.Errorf("lock the job's directory: %w", err)
	}
	// Also where there are only overlays: it is the lock on all of the machine.
	return holdJobDir(context.Background(), jobDir, removeLockTimeout)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// removeFiles removes what a machine leaves on the host beside its domain, which
// must be gone. The machine's directory is locked, but see lockToRemove.
func removeFiles(ctx context.Context, h *virt.Host, name, cloneDir, jobDir string) error {
	ctx, cancel := rollback.Context(ctx)
	defer cancel()
	return errors.Join(passt.New(h, name, cloneDir, jobDir).Stop(ctx), os.RemoveAll(filepath.Join(cloneDir, name)), os.RemoveAll(jobDir))
}

// RemoveAbandoned removes the files of a machine that has no domain, unless
// somebody is making it at this moment, and reports whether there were any. With
// dryRun it only reports. A domain of that name, whoever's, keeps its files.
func RemoveAbandoned(ctx context.Context, h *virt.Host, name, cloneDir, jobDir string, dryRun bool) (found bool, err error) {
	made := false
	if !dryRun { // see lockToRemove
		if err := os.MkdirAll(filepath.Dir(jobDir), 0o700); err != nil {
			return false, fmt.Errorf("make the job's directory: %w", err)
		}
		made = os.Mkdir(jobDir, 0o700) == nil
	}
	locked, err := lockDir(jobDir)
	switch {
	case dryRun && errors.Is(err, fs.ErrNotExist): // overlays alone
	case errors.Is(err, fs.ErrNotExist): // somebody has just removed it
		return false, nil
	case err != nil || locked == nil:
		return false, err
	default:
		defer locked.unlock()
	}
	// Asked with the lock held: whoever made the directory is gone, and a domain
	// that it started is known by now.
	if _, err := h.Domain(ctx, name); !errors.Is(err, virt.ErrNoDomain) {
		if made {
			err = errors.Join(err, os.Remove(jobDir))
		}
		return false, err
	}
	if made && !exists(filepath.Join(cloneDir, name)) { // all of it has gone since it was seen
		return false, os.Remove(jobDir)
	}
	if dryRun {
		return true, nil
	}
	return true, removeFiles(ctx, h, name, cloneDir, jobDir)
}
