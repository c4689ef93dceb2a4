package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/snapshot"
)

// PruneOptions select what [PruneImages] and [PruneCaches] remove.
type PruneOptions struct {
	// OlderThan keeps what was used within that time.
	OlderThan time.Duration
	// KeepStorage stops the removal when the store is that small, in bytes;
	// [store.KeepNothing] does not.
	KeepStorage int64
	// DryRun removes nothing.
	DryRun bool
	// Now is the time to compare with.
	Now time.Time
}

// PruneImages removes images that no domain uses, least recently used first, with their
// snapshots, and returns them. If libvirt does not answer, it removes nothing.
func PruneImages(ctx context.Context, settings *config.Settings, o PruneOptions) ([]store.StoredImage, error) {
	images, err := storeOf(settings)
	if err != nil {
		return nil, err
	}
	domains, err := domainsByImage(ctx, settings)
	if err != nil {
		return nil, fmt.Errorf("find out which images are in use: %w", err)
	}
	removed, err := images.Prune(ctx, store.PruneOptions{
		UnusedSince: o.Now.Add(-o.OlderThan),
		Keep:        o.KeepStorage,
		InUse:       func(d digest.Digest) bool { return len(domains[d]) > 0 },
		DryRun:      o.DryRun,
	})
	if !o.DryRun {
		err = errors.Join(err, pruneSnapshots(ctx, settings, images))
	}
	return removed, err
}

// pruneSnapshots removes the snapshots of images that are no longer in the store.
func pruneSnapshots(ctx context.Context, settings *config.Settings, images *store.Store) error {
	dirs, err := settings.Dirs()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dirs.Snapshots())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prune snapshots: %w", err)
	}
	stored, err := images.Inventory(ctx)
	if err != nil {
		return err
	}
	kept := make(map[string]bool)
	for _, image := range stored {
		kept[config.SnapshotName(image.Key())] = true
	}
	var failed []error
	for _, entry := range entries {
		if !kept[entry.Name()] {
			failed = append(failed, snapshot.Remove(filepath.Join(dirs.Snapshots(), entry.Name())))
		}
	}
	return errors.Join(failed...)
}

// PruneCaches removes caches that no machine uses and that were not used within
// o.OlderThan, and returns them. If libvirt does not answer, it removes nothing.
func PruneCaches(ctx context.Context, settings *config.Settings, o PruneOptions) ([]cache.Stored, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return nil, fmt.Errorf("find out which caches are in use: %w", err)
	}
	defer host.Close()
	return cache.Prune(ctx, host, dirs.Caches, cache.PruneOptions{UnusedSince: o.Now.Add(-o.OlderThan), DryRun: o.DryRun})
}
