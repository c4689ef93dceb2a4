package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
)

// The store has two kinds of locks: flocks of files in its directory locks, which the kernel
// releases when the process ends.
//
//   - Each image has a lock: shared while processes use the image, exclusive during its removal.
//   - Each turn has a lock (see turn.go): exclusive during a pull.
//
// Publishing an image needs no lock: it is a rename.

// tryLock locks a file. It returns nil if another process has the lock.
func (s *Store) tryLock(name string, shared bool) (*flock.Flock, error) {
	path := filepath.Join(s.root, locksDir, name)
	for {
		// Other users who share the store must be able to lock.
		lock := flock.New(path, flock.SetPermissions(0o644))
		try := lock.TryLock
		if shared {
			try = lock.TryRLock
		}
		locked, err := try()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), lock.Close())
		}
		if !locked {
			return nil, lock.Close()
		}
		if isCurrent(lock, path) {
			return lock, nil
		}
		// The previous holder has removed the file, so this lock excludes no other process.
		if err := lock.Close(); err != nil {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
	}
}

func isCurrent(lock *flock.Flock, path string) bool {
	is, err := os.Stat(path)
	if err != nil {
		return false
	}
	have, err := lock.Stat()
	return err == nil && os.SameFile(have, is)
}

// dropLock releases an exclusive lock and removes its file. It keeps the file for images of
// older versions, which do not check that it still exists.
func dropLock(lock *flock.Flock) error {
	if k, _, ok := parseKey(filepath.Base(lock.Path())); !ok || k.reading == "" {
		return lock.Close()
	}
	err := os.Remove(lock.Path())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, lock.Close())
}

// removalTimeout is how long to wait for an exclusive lock of an image. It is only held for a
// rename, unless the process was stopped.
const removalTimeout = 10 * time.Second

// hold opens and locks the image k. The error is [oci.ErrNotFound] if the store does not have
// it.
func (s *Store) hold(ctx context.Context, k key) (*oci.Image, error) {
	for began := time.Now(); ; {
		if !s.has(k) {
			return nil, s.notHeld(k)
		}
		lock, err := s.tryLock(k.String(), true)
		if isUnwritable(err) {
			return s.open(k) // no image is removed from a read-only store
		}
		if err != nil {
			return nil, err
		}
		if lock != nil {
			image, err := s.open(k)
			if err != nil {
				return nil, errors.Join(err, lock.Close())
			}
			image.Hold(lock)
			return image, nil
		}
		if k.reading == "" {
			return nil, s.notHeld(k) // an older version locks the image during the pull
		}
		if time.Since(began) > removalTimeout {
			return nil, fmt.Errorf("image %s: another process that removes it makes no progress (lock %s)", k.digest, filepath.Join(s.root, locksDir, k.String()))
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("image %s: waiting for another process that removes it: %w", k.digest, err)
		}
	}
}

// has reports whether the store has the complete image k.
func (s *Store) has(k key) bool {
	_, err := os.Stat(filepath.Join(s.imageDir(k), oci.ImageFile))
	return err == nil
}

// pause waits until the next try of a lock, or until the context ends. Its length varies, so
// that waiting processes do not try at the same time.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(fileutil.LockPoll/2 + rand.N(fileutil.LockPoll)):
		return nil
	}
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }

// isUnwritable reports whether the store belongs to another user or is on a read-only file
// system.
func isUnwritable(err error) bool {
	return isReadOnly(err) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)
}
