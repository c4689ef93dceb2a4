// Package diskusage measures the space that files take on a disk. That is less than their size
// for sparse files, and more for small ones.
package diskusage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// blockSize is the unit of st_blocks in bytes on all file systems: stat(2).
const blockSize = 512

// Of returns the space that a file takes, in bytes; 0 if it is unknown.
func Of(info fs.FileInfo) int64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Blocks * blockSize
	}
	return 0
}

// OfFile returns the space that the file at a path takes, in bytes.
func OfFile(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return Of(info), nil
}

// OfDir is the space that a directory and everything in it take, in bytes. A directory that
// does not exist takes none; what is removed meanwhile, or cannot be read, is not counted. No
// symbolic link is followed, so that a guest may have made what lies there.
func OfDir(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("measuring %s: %w", dir, err)
	}
	defer root.Close()
	var sum int64
	err = fs.WalkDir(root.FS(), ".", func(_ string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("measuring %s: %w", dir, context.Cause(ctx))
		}
		if err != nil {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			sum += Of(info)
		}
		return nil
	})
	return sum, err
}
