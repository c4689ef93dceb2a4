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

// The store has two kinds of locks, all of them flocks of files in its directory of locks,
// which the kernel drops with the process:
//
//   - one for each image, shared by those who are about to use it and held alone, for a moment,
//     to remove it;
//   - one for each turn, see turn.go, held alone to pull an image.
//
// No lock is needed to publish an image: a rename does that.

// tryLock locks a file. It returns nil if another process has the lock.
func (s *Store) tryLock(name string, shared bool) (*flock.Flock, error) {
	path := filepath.Join(s.root, locksDir, name)
	for {
		// Readable for all: a user who shares the store must be able to lock.
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
		// The process that had the lock removed the file: no other asks for the one that we hold.
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

// dropLock gives up a lock that is held alone, and removes its file. It leaves the file of an
// image that an older version stored: that version does not look whether it is still there.
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

// removalPatience is how long an image is waited for that is locked alone: that is the time
// of a rename, unless the process was stopped.
const removalPatience = 10 * time.Second

// hold opens the image k so that it is not removed before it is closed. The error is
// [oci.ErrNotFound] if the store does not hold it.
func (s *Store) hold(ctx context.Context, k key) (*oci.Image, error) {
	for began := time.Now(); ; {
		if !s.has(k) {
			return nil, s.notHeld(k)
		}
		lock, err := s.tryLock(k.String(), true)
		if isUnwritable(err) {
			return s.open(k) // images are not removed from a store that cannot be written
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
			return nil, s.notHeld(k) // an older version locks the image as long as it pulls it
		}
		if time.Since(began) > removalPatience {
			return nil, fmt.Errorf("image %s: another process is removing it and does not go on (lock %s)", k.digest, filepath.Join(s.root, locksDir, k.String()))
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("image %s: waiting for another process that removes it: %w", k.digest, err)
		}
	}
}

// has reports whether the store holds the image k, complete.
func (s *Store) has(k key) bool {
	_, err := os.Stat(filepath.Join(s.imageDir(k), oci.ImageFile))
	return err == nil
}

// pause waits until a lock can be tried again, or the context ends. Its length varies, so that
// those who wait do not try all at once.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(fileutil.LockPoll/2 + rand.N(fileutil.LockPoll)):
		return nil
	}
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }

// isUnwritable: the store belongs to another user or lies on a read-only file
// system.
func isUnwritable(err error) bool {
	return isReadOnly(err) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)
}
