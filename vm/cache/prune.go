package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/vm/virt"
)

// A Stored describes a cache on this host: one disk, or one share.
type Stored struct {
	// Name is the path below the directory of caches.
	Name string
	Mode Mode
	// Owner is the readable name of the owner.
	Owner string
	// Size is the disk usage, in bytes. [List] omits that of shares, which requires a look
	// at every file.
	Size int64
	// LastUsed is when a machine last wrote to the disk (a mount does), or got the share.
	LastUsed time.Time
}

// List lists the caches in dir by name, without reading their contents.
func List(dir string) ([]Stored, error) {
	var caches []Stored
	for _, pattern := range []string{path.Join(diskDir, "*", "*"+diskSuffix), path.Join(shareDir, "*", filesDir)} {
		names, err := fs.Glob(os.DirFS(dir), pattern)
		if err != nil {
			return nil, fmt.Errorf("list caches: %w", err)
		}
		for _, name := range names {
			cache, err := describe(dir, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed since it was listed
			}
			if err != nil {
				return nil, fmt.Errorf("list caches: %w", err)
			}
			caches = append(caches, cache)
		}
	}
	return caches, nil
}

// describe describes the disk or the files of the share of that name.
func describe(dir, name string) (Stored, error) {
	owner, err := os.ReadFile(filepath.Join(dir, path.Dir(name), ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Stored{}, err
	}
	cache := Stored{Name: name, Mode: Disk, Owner: strings.TrimSpace(string(owner))}
	used := filepath.Join(dir, name)
	if path.Base(name) == filesDir {
		cache.Name, cache.Mode = path.Dir(name), Share
		used = filepath.Join(dir, path.Dir(name), ownerFile) // guests can set the time of the directory
	} else if cache.Size, err = diskusage.OfFile(used); err != nil {
		return cache, err
	}
	info, err := os.Lstat(used)
	if err != nil {
		return cache, err
	}
	cache.LastUsed = info.ModTime()
	return cache, nil
}

// PruneOptions select what [Prune] removes.
type PruneOptions struct {
	// UnusedSince keeps caches that were used after that time.
	UnusedSince time.Time
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes the caches in dir that no machine has, least recently used first, and
// returns them. If libvirt does not answer, it removes nothing.
func Prune(ctx context.Context, h *virt.Host, dir string, o PruneOptions) ([]Stored, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	pruned, places, err := setAside(ctx, h, dir, o)
	// Not under the lock: a share can have millions of files.
	for i := range pruned {
		if pruned[i].Mode == Share && err == nil {
			pruned[i].Size, err = diskusage.OfDir(ctx, places[i])
		}
	}
	if o.DryRun {
		return pruned, err
	}
	// This includes what an earlier prune has left. RemoveAll does not follow symbolic links.
	if failed := os.RemoveAll(filepath.Join(dir, removedDir)); failed != nil {
		err = errors.Join(err, fmt.Errorf("remove caches: %w", failed))
	}
	return pruned, err
}

// setAside moves the caches to remove to a place where no machine finds them, and returns
// their new paths.
func setAside(ctx context.Context, h *virt.Host, dir string, o PruneOptions) (pruned []Stored, places []string, err error) {
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	taken, err := inUse(ctx, h, dir)
	if err != nil {
		return nil, nil, err
	}
	caches, err := List(dir)
	if err != nil {
		return nil, nil, err
	}
	caches = slices.DeleteFunc(caches, func(c Stored) bool { return taken[c.Name] || c.LastUsed.After(o.UnusedSince) })
	slices.SortStableFunc(caches, func(a, b Stored) int { return a.LastUsed.Compare(b.LastUsed) })
	for _, c := range caches {
		place := filepath.Join(dir, c.Name)
		if !o.DryRun {
			if place, err = c.setAside(dir); err != nil {
				return pruned, places, fmt.Errorf("remove cache %s: %w", c.Name, err)
			}
		}
		pruned, places = append(pruned, c), append(places, place)
	}
	return pruned, places, nil
}

func (c Stored) setAside(dir string) (place string, err error) {
	removed := filepath.Join(dir, removedDir)
	if err := os.MkdirAll(removed, 0o700); err != nil {
		return "", err
	}
	bin, err := os.MkdirTemp(removed, "")
	if err != nil {
		return "", err
	}
	place = filepath.Join(bin, path.Base(c.Name))
	if err := os.Rename(filepath.Join(dir, c.Name), place); err != nil || c.Mode == Share {
		return place, err
	}
	keyDir := filepath.Join(dir, path.Dir(c.Name))
	if others, err := filepath.Glob(filepath.Join(keyDir, "*"+diskSuffix)); err != nil || len(others) > 0 {
		return place, err
	}
	return place, os.RemoveAll(keyDir) // that was the owner's last cache
}
