package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
)

// reserve reserves a cache for a machine that is starting, until release is called or the
// process ends: the process holds a shared lock on a file that is named after the cache.
// Several machines may reserve one share. The caller holds the lock of dir.
func reserve(dir, name string) (release func() error, err error) {
	if err := os.MkdirAll(filepath.Join(dir, reservedDir), 0o700); err != nil {
		return nil, fmt.Errorf("reserve the cache %s: %w", name, err)
	}
	file := flock.New(filepath.Join(dir, reservedDir, strings.ReplaceAll(name, "/", "-")))
	switch locked, err := file.TryRLock(); {
	case err != nil:
		return nil, fmt.Errorf("reserve the cache %s: %w", name, err)
	case !locked:
		return nil, fmt.Errorf("reserve the cache %s: another process has locked %s", name, file.Path())
	}
	return file.Close, nil
}

// reserved returns the names of the caches that are reserved, and removes the files of
// reservations that have ended. The caller holds the lock of dir.
func reserved(dir string) (map[string]bool, error) {
	files, err := os.ReadDir(filepath.Join(dir, reservedDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find out which caches are reserved: %w", err)
	}
	names := make(map[string]bool)
	for _, entry := range files {
		file := flock.New(filepath.Join(dir, reservedDir, entry.Name()))
		ended, err := file.TryLock()
		if ended {
			err = os.Remove(file.Path())
		}
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("find out which caches are reserved: %w", err)
		}
		if !ended {
			names[strings.ReplaceAll(entry.Name(), "-", "/")] = true
		}
	}
	return names, nil
}
