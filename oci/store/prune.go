package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// PruneOptions say what [Store.Prune] removes.
type PruneOptions struct {
	// UnusedSince spares images that were used after it. The zero value is a time
	// before all others, so that none is old enough.
	UnusedSince time.Time
	// Keep stops the removal, which begins with what was not used for the longest
	// time, as soon as the store takes no more than so many bytes.
	Keep int64
	// InUse says whether some machine's disks stand on an image. It must not be nil.
	InUse func(digest.Digest) bool
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes images, and pulls that were interrupted, and returns what it
// removed. It never removes an image in use: one of which o.InUse says so, or
// that another process holds or makes. It goes on after an error, and returns all
// of them.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]StoredImage, error) {
	stored, err := s.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, image := range stored {
		total += image.Usage
	}
	slices.SortStableFunc(stored, func(a, b StoredImage) int { return a.LastUsed.Compare(b.LastUsed) })
	var removed []StoredImage
	var failed []error
	for _, image := range stored {
		if total <= o.Keep || !image.LastUsed.Before(o.UnusedSince) {
			break
		}
		if err := ctx.Err(); err != nil {
			failed = append(failed, err)
			break
		}
		if o.InUse(image.Digest) {
			continue
		}
		gone, err := s.removeUnused(image, o.DryRun)
		if err != nil {
			failed = append(failed, fmt.Errorf("removing image %s: %w", image.Digest, err))
		}
		if gone {
			total -= image.Usage
			removed = append(removed, image)
		}
	}
	if !o.DryRun {
		failed = append(failed, s.finishRemovals())
	}
	return removed, errors.Join(failed...)
}

// KeepNothing is for [PruneOptions.Keep]: everything that is old enough goes.
const KeepNothing int64 = math.MinInt64

// removeUnused removes an image if no process holds or pulls it, and none has used it since
// it was listed: a job may have come that is in no list of machines yet.
func (s *Store) removeUnused(image StoredImage, dryRun bool) (gone bool, err error) {
	lock, err := s.tryLock(image.lock, false)
	if lock == nil || err != nil {
		return false, err
	}
	info, err := os.Stat(image.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, dropLock(lock)
	case err != nil:
		return false, errors.Join(err, lock.Close())
	case !info.ModTime().Equal(image.LastUsed):
		return false, lock.Close()
	case dryRun:
		return true, lock.Close()
	}
	aside, err := s.moveAside(image)
	if err = errors.Join(err, dropLock(lock)); err != nil {
		return false, err
	}
	// The lock was held for a moment only: no pull waits for this.
	return true, os.RemoveAll(aside)
}

// moveAside gives an image a name under which nothing finds it, and removes its references. It
// is complete or absent at every moment. Our caller has its lock.
func (s *Store) moveAside(image StoredImage) (aside string, err error) {
	// What a killed prune left is in the way.
	aside = filepath.Join(s.root, imagesDir, removedPrefix+filepath.Base(image.dir))
	if err := os.RemoveAll(aside); err != nil {
		return "", err
	}
	if err := os.Rename(image.dir, aside); err != nil {
		return "", err
	}
	if image.Image == nil {
		return aside, nil // an interrupted pull: the names are those of a complete image
	}
	return aside, s.eachReference(func(path string, record referenceRecord) error {
		if k, err := record.key(); err != nil || k != image.key {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// finishRemovals removes what a prune that was killed left.
func (s *Store) finishRemovals() error {
	left, err := filepath.Glob(filepath.Join(s.root, imagesDir, removedPrefix+"*"))
	if err != nil {
		return nil // the root's path holds a pattern: the next pull does not mind them
	}
	var failed []error
	for _, dir := range left {
		failed = append(failed, os.RemoveAll(dir))
	}
	return errors.Join(failed...)
}
