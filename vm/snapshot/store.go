package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gitlab-sardine-executor/internal/diskusage"
)

// Usage returns the number of snapshots below dir, which has a directory for each image, and
// their disk usage in bytes. The size includes incomplete snapshots.
func Usage(dir string) (count int, size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // there is none, or it was removed since it was listed
		}
		if err != nil || entry.IsDir() {
			return err
		}
		if entry.Name() == memoryFile && filepath.Ext(filepath.Dir(path)) != tmpSuffix {
			count++
		}
		bytes, err := diskusage.OfFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		size += bytes
		return err
	})
	return count, size, err
}

// Remove removes the snapshots of an image in dir, except those that a process is making or
// starting a machine from. Machines that were started from them continue to run.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove snapshots: %w", err)
	}
	var failed []error
	done := make(map[string]bool)
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry.Name(), ".") // a snapshot, an incomplete one, or a lock
		if !done[name] {
			failed = append(failed, removeOne(filepath.Join(dir, name)))
		}
		done[name] = true
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.Remove(dir)
}

func removeOne(dir string) error {
	lock, err := lockOf(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	got, err := lock.TryLock()
	if err != nil {
		return fmt.Errorf("lock the snapshot: %w", err)
	}
	if !got {
		return fmt.Errorf("the snapshot %s is in use", dir)
	}
	// The lock is removed last. A process that waits for it then makes or uses a snapshot
	// without a visible lock: at worst the snapshot is removed while a machine resumes
	// from it, and that machine boots instead.
	return errors.Join(os.RemoveAll(dir+tmpSuffix), os.RemoveAll(dir), os.Remove(lock.Path()))
}

// evictOldest makes room for another snapshot of the image: it removes the oldest one if that
// is old enough.
func (s *Snapshot) evictOldest() error {
	notes, err := filepath.Glob(filepath.Join(filepath.Dir(s.dir), "*", noteFile))
	if err != nil {
		return err
	}
	notes = slices.DeleteFunc(notes, func(note string) bool { return filepath.Dir(note) == s.dir })
	if len(notes) < maxPerImage {
		return nil
	}
	var oldest string
	made := time.Now()
	for _, note := range notes {
		if info, err := os.Stat(note); err == nil && info.ModTime().Before(made) {
			oldest, made = filepath.Dir(note), info.ModTime()
		}
	}
	if oldest == "" || time.Since(made) < minLife {
		return none("the image has %d already, of other kinds of machine", len(notes))
	}
	if err := removeOne(oldest); err != nil {
		return none("%w", err)
	}
	return nil
}
