package console

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Console logs of guests that did not start are kept for keptLife, up to keptMax bytes.
const (
	keptLife = 7 * 24 * time.Hour
	keptMax  = 4 << 20
)

// Keep copies a console log to the directory of those that are kept, which it creates. It
// returns the path of the copy.
func Keep(from io.Reader, dir, name string) (string, error) {
	path := filepath.Join(dir, name+".log")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return path, err
	}
	to, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return path, err
	}
	_, err = io.Copy(to, io.LimitReader(from, keptMax))
	return path, errors.Join(err, to.Close())
}

// Sweep removes kept console logs that are older than a week at that time.
func Sweep(dir string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var failed []error
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && now.Sub(info.ModTime()) > keptLife {
			failed = append(failed, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	return errors.Join(append(failed, err)...)
}
