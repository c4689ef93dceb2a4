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

// A Stored is a cache that lies on this host: one disk, or one share.
type Stored struct {
	// Name is its path below the directory of caches.
	Name string
	Mode Mode
	// Owner says whose it is.
	Owner string
	// Size is what it takes on this host, in bytes. [List] leaves that of shares
	// out, for which every file has to be looked at.
	Size int64
	// LastUsed is when a machine last wrote to the disk, which mounting does, or last
	// got the share.
	LastUsed time.Time
}

// List lists the caches below dir, without a look into them, in the order of their
// names.
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
				continue // gone since it was listed
			}
			if err != nil {
				return nil, fmt.Errorf("list caches: %w", err)
			}
			caches = append(caches, cache)
		}
	}
	return caches, nil
}

// describe describes the disk, or the share with the files, of that name.
func describe(dir, name string) (Stored, error) {
	owner, err := os.ReadFile(filepath.Join(dir, path.Dir(name), ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Stored{}, err
	}
	cache := Stored{Name: name, Mode: Disk, Owner: strings.TrimSpace(string(owner))}
	used := filepath.Join(dir, name)
	if path.Base(name) == filesDir {
		cache.Name, cache.Mode = path.Dir(name), Share
		used = filepath.Join(dir, path.Dir(name), ownerFile) // the directory's own time is the guests'
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

// PruneOptions say what [Prune] removes.
type PruneOptions struct {
	// UnusedSince spares caches that were used after that time.
	UnusedSince time.Time
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes caches below dir that no machine has, and returns them, those
// first that were not used for the longest time. Where libvirt cannot be asked whose
// are in use, nothing is removed.
func Prune(ctx context.Context, h *virt.Host, dir string, o PruneOptions) ([]Stored, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	pruned, places, err := setAside(ctx, h, dir, o)
	// Without the lock: a share can have millions of files.
	for i := range pruned {
		if pruned[i].Mode == Share && err == nil {
			pruned[i].Size, err = diskusage.OfDir(ctx, places[i])
		}
	}
	if o.DryRun {
		return pruned, err
	}
	// Also what an earlier prune did not come to. Symbolic links are removed, not
	// followed.
	if failed := os.RemoveAll(filepath.Join(dir, removedDir)); failed != nil {
		err = errors.Join(err, fmt.Errorf("remove caches: %w", failed))
	}
	return pruned, err
}

// setAside takes the caches that are to go out of everybody's reach, and says where
// they are then.
func setAside(ctx context.Context, h *virt.Host, dir string, o PruneOptions) (pruned []Stored, places []string, err error) {
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	taken, err := inUse(ctx, h)
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
	return place, os.RemoveAll(keyDir) // the owner's last
}
