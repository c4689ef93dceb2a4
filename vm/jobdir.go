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
)

const (
	// jobDirTimeout is how long a start waits for its job directory while another process
	// removes what is there.
	jobDirTimeout = 5 * time.Second
	// lockPoll is how often a lock is tried that another process holds.
	lockPoll = 20 * time.Millisecond
	// removeLockTimeout is how long a removal waits for a start that was told to end, or for
	// a sweep.
	removeLockTimeout = 500 * time.Millisecond
	// forceLockTimeout is the same for a forced removal.
	forceLockTimeout = 20 * time.Second
)

// A jobDir is the locked directory of a machine. The process that starts the machine holds
// the lock until the domain runs, which protects the files from then on. A process that
// removes the machine holds it until everything is removed.
type jobDir struct {
	path string
	dir  *os.File
}

// createJobDir creates the directory of a machine. It removes what a process that died has
// left there: no domain has these files.
func createJobDir(ctx context.Context, path string) (*jobDir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create the job's directory: %w", err)
	}
	locked, err := lockJobDir(ctx, path, jobDirTimeout)
	if err != nil {
		return nil, err
	}
	if locked == nil {
		return nil, fmt.Errorf("another process uses the job's directory %s: is a second prepare of this job running?", path)
	}
	if err := locked.clear(); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the job's directory: %w", err), locked.unlock())
	}
	return locked, nil
}

// lockJobDir locks the directory, and creates it if necessary; nil if another process
// holds the lock for the whole timeout.
func lockJobDir(ctx context.Context, path string, timeout time.Duration) (*jobDir, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errLocked)
	defer cancel()
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create the job's directory: %w", err)
		}
		locked, err := tryLock(path)
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

var errLocked = errors.New("another process holds the lock")

// tryLock locks a directory; nil if another process holds the lock. The error is
// [fs.ErrNotExist] if there is no directory.
func tryLock(path string) (*jobDir, error) {
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

// check returns [fs.ErrNotExist] if the locked directory does not have that path any more:
// it was removed before it was locked, and may have been created again.
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

// clear empties the directory.
func (d *jobDir) clear() error {
	entries, err := os.ReadDir(d.path)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(d.path, entry.Name())))
	}
	return err
}

// removeIfEmpty removes a directory that contains nothing. It may have been created for the
// lock.
func (d *jobDir) removeIfEmpty() {
	if d != nil {
		_ = os.Remove(d.path)
	}
}

func (d *jobDir) unlock() error { return d.dir.Close() }
