// Package dirlock locks directories between processes. The lock is on the directory itself
// (flock(2)), so that it is removed with it and no lock file is left behind.
package dirlock

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

// poll is how often a lock is tried that another process holds.
const poll = 20 * time.Millisecond

// A Lock is a directory that this process has locked.
type Lock struct {
	path string
	dir  *os.File
}

var errTimeout = errors.New("another process holds the lock")

// Acquire locks the directory, and creates it with mode 0700 if necessary. It returns nil
// if another process holds the lock for the whole timeout.
func Acquire(ctx context.Context, path string, timeout time.Duration) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock the directory %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lock the directory %s: %w", path, err)
		}
		locked, err := Try(path)
		if locked != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return locked, err
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errTimeout) {
				return nil, cause
			}
			return nil, nil
		}
	}
}

// Try locks the directory; nil if another process holds the lock. The error is
// [fs.ErrNotExist] if there is no directory.
func Try(path string) (*Lock, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lock the directory: %w", err)
	}
	locked := &Lock{path, dir}
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
	return nil, fmt.Errorf("lock the directory %s: %w", path, err)
}

// check returns [fs.ErrNotExist] if the locked directory does not have that path any more:
// it was removed before it was locked, and may have been created again.
func (l *Lock) check() error {
	ours, err := l.dir.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(l.path)
	if err == nil && !os.SameFile(ours, named) {
		err = fs.ErrNotExist
	}
	return err
}

// Clear empties the directory.
func (l *Lock) Clear() error {
	entries, err := os.ReadDir(l.path)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(l.path, entry.Name())))
	}
	return err
}

// RemoveIfEmpty removes a directory that contains nothing: it may have been created for the
// lock. It does nothing if l is nil.
func (l *Lock) RemoveIfEmpty() {
	if l != nil {
		_ = os.Remove(l.path)
	}
}

// Unlock releases the lock.
func (l *Lock) Unlock() error { return l.dir.Close() }
