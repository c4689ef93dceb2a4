package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A jobDir is the directory of a machine that is being made. It is locked while
// its maker lives and the domain, which then speaks for it, does not run yet:
// whoever sweeps leaves it alone.
type jobDir struct{ dir *os.File }

// makeJobDir makes the directory of a machine. What a dead process left under
// this name goes: no domain has it.
func makeJobDir(path string) (*jobDir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the job's directory: %w", err)
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, fmt.Errorf("clear the job's directory: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, fmt.Errorf("make the job's directory: %w", err)
	}
	locked, err := lockDir(path)
	if err != nil {
		return nil, fmt.Errorf("lock the job's directory: %w", err)
	}
	if locked == nil {
		return nil, fmt.Errorf("the job's directory %s is being removed", path)
	}
	return locked, nil
}

// lockDir locks a directory; nil if somebody else has it locked.
func lockDir(path string) (*jobDir, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &jobDir{dir}, nil
	}
	dir.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}

func (d *jobDir) unlock() error { return d.dir.Close() }

// RemoveAbandoned removes the files of a machine that has no domain, unless
// somebody is making it at this moment, and reports whether there were any. With
// dryRun it only reports. A domain of that name, whoever's, keeps its files.
func RemoveAbandoned(ctx context.Context, h *Host, name, cloneDir, jobDir string, dryRun bool) (found bool, err error) {
	locked, err := lockDir(jobDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The job's directory is made first and removed last: overlays without one
		// are nobody's.
	case err != nil:
		return false, fmt.Errorf("lock the job's directory: %w", err)
	case locked == nil:
		return false, nil
	default:
		defer locked.unlock()
	}
	// Asked with the lock held: whoever made the directory is gone, and a domain
	// that it started is known by now.
	if _, err := h.domain(ctx, name); !errors.Is(err, ErrNoDomain) {
		return false, err
	}
	if dryRun {
		return true, nil
	}
	return true, RemoveFiles(name, cloneDir, jobDir)
}
