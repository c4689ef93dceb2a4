package oci

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"
)

// lockPoll is how often a lock that another process holds is tried again: flock
// cannot be waited for with a deadline.
const lockPoll = 100 * time.Millisecond

// withLock runs fn while no other process pulls or removes the image d. waiting
// is called once if another does so now. The kernel drops the lock of a process
// that dies; the file stays, for removing it would let two in.
func (s *Store) withLock(ctx context.Context, d digest.Digest, waiting func(), fn func() error) (err error) {
	lock := flock.New(filepath.Join(s.root, locksDir, directoryName(d)))
	// Closing adds its error to that of fn, never in place of it.
	defer func() { err = errors.Join(err, lock.Close()) }()
	locked, err := lock.TryLock()
	if err == nil && !locked {
		waiting()
		_, err = lock.TryLockContext(ctx, lockPoll)
	}
	if err != nil {
		return fmt.Errorf("locking image %s in the store %s: %w", d, s.root, err)
	}
	return fn()
}

func isReadOnly(err error) bool { return errors.Is(err, syscall.EROFS) }
