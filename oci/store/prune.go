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
	// UnusedSince selects images that were last used before it. The zero value selects
	// none.
	UnusedSince time.Time
	// Keep stops the removal when the store is that small, in bytes. Least recently used
	// images are removed first.
	Keep int64
	// InUse reports whether a machine uses an image. It must not be nil.
	InUse func(digest.Digest) bool
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes images and files of interrupted pulls, and returns what it removed. It never
// removes an image in use: according to o.InUse, or because another process has locked it or
// pulls it. It continues after errors, and returns all of them.
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

// KeepNothing is a value of [PruneOptions.Keep]: remove everything that is old enough.
const KeepNothing int64 = math.MinInt64

// removeUnused removes an image if no process has locked it or pulls it, and none has used it
// since it was listed: a new job may not be in the list of machines yet.
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
	// The lock is released already: no pull waits for this.
	return true, os.RemoveAll(aside)
}

// moveAside renames an image so that it is not found, and removes its references. At any time
// the image is complete or absent. The caller has its lock.
func (s *Store) moveAside(image StoredImage) (aside string, err error) {
	// A killed prune may have left this directory.
	aside = filepath.Join(s.root, imagesDir, removedPrefix+filepath.Base(image.dir))
	if err := os.RemoveAll(aside); err != nil {
		return "", err
	}
	if err := os.Rename(image.dir, aside); err != nil {
		return "", err
	}
	if image.Image == nil {
		return aside, nil // an interrupted pull has no references
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

// finishRemovals removes the files of a killed prune.
func (s *Store) finishRemovals() error {
	left, err := filepath.Glob(filepath.Join(s.root, imagesDir, removedPrefix+"*"))
	if err != nil {
		return nil // the root's path has meta characters; these files are harmless
	}
	var failed []error
	for _, dir := range left {
		failed = append(failed, os.RemoveAll(dir))
	}
	return errors.Join(failed...)
}
