package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
)

// Each image has a lock file. Whoever makes or removes the image holds it alone;
// those who are about to use the image share it. The kernel drops the lock of a
// process that dies; the file stays, for removing it would let two in.

func (s *Store) lock(d digest.Digest) *flock.Flock {
	// Readable for all: a user who shares the store must be able to lock.
	return flock.New(filepath.Join(s.root, locksDir, directoryName(d)), flock.SetPermissions(0o644))
}

// withLock runs fn while no other process makes, removes or is about to use the
// image d. waiting is called once if another does so now.
func (s *Store) withLock(ctx context.Context, d digest.Digest, waiting func(), fn func() error) (err error) {
	lock := s.lock(d)
	// Closing adds its error to that of fn, never in place of it.
	defer func() { err = errors.Join(err, lock.Close()) }()
	locked, err := lock.TryLock()
	if err == nil && !locked {
		waiting()
		_, err = lock.TryLockContext(ctx, fileutil.LockPoll)
	}
	if err != nil {
		return fmt.Errorf("locking image %s in the store %s: %w", d, s.root, err)
	}
	return fn()
}

// tryLock runs fn if no other process makes, removes or is about to use the
// image d; free is false, and nothing was done, if one does.
func (s *Store) tryLock(d digest.Digest, fn func() error) (free bool, err error) {
	lock := s.lock(d)
	defer func() { err = errors.Join(err, lock.Close()) }()
	if free, err = lock.TryLock(); err != nil {
		return false, fmt.Errorf("locking image %s in the store %s: %w", d, s.root, err)
	}
	if !free {
		return false, nil
	}
	return true, fn()
}

// acquire opens the image d and holds it. If the store has none, one process at a
// time makes it by unpack, and the others wait for it; with a nil unpack the
// error is then [ErrNotFound]. waiting is called once if another makes it now.
func (s *Store) acquire(ctx context.Context, d digest.Digest, waiting func(), unpack func() error) (*oci.Image, error) {
	for {
		image, busy, err := s.hold(d)
		if !busy && (err == nil || !errors.Is(err, oci.ErrNotFound) || unpack == nil) {
			return image, err
		}
		done := false
		if s.unwritable != nil {
			return nil, fmt.Errorf("the store %s cannot be written: %w", s.root, s.unwritable)
		}
		if !busy {
			done, err = s.tryLock(d, func() error {
				if _, err := s.open(d); err == nil {
					return nil // another was faster
				}
				return unpack()
			})
			if err != nil {
				return nil, err
			}
		}
		if done {
			continue
		}
		// Not busy and not done: another looked in the same moment.
		if busy && waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for image %s in the store %s: %w", d, s.root, context.Cause(ctx))
		case <-time.After(fileutil.LockPoll/2 + rand.N(fileutil.LockPoll)):
		}
	}
}

// hold opens the image d with a shared lock. busy is true if another process has
// the lock for itself.
func (s *Store) hold(d digest.Digest) (image *oci.Image, busy bool, err error) {
	lock := s.lock(d)
	shared, err := lock.TryRLock()
	if isUnwritable(err) {
		// Nobody removes images from a store that cannot be written.
		image, err = s.open(d)
		return image, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("locking image %s in the store %s: %w", d, s.root, err)
	}
	if !shared {
		return nil, true, lock.Close()
	}
	image, err = s.open(d)
	if err != nil {
		return nil, false, errors.Join(err, lock.Close())
	}
	image.Hold(lock)
	return image, false, nil
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }

// isUnwritable: the store belongs to another user or lies on a read-only file
// system.
func isUnwritable(err error) bool {
	return isReadOnly(err) || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist)
}
