// Package toolsdisk makes a read-only disk with programs of this host for guests, and adds
// it to their domains.
package toolsdisk

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kdomanski/iso9660"
	"golang.org/x/sys/unix"
)

const (
	// label is the volume label of the file system, ISO 9660. Scripts in guests look for it.
	label = "SARDINE_TOOLS"
	// layout is part of the names of the disks. Increase it if their content changes for
	// the same programs.
	layout = 1
	suffix = ".iso"
	// unusedMax is how long a disk is kept that no machine was started with. A machine that
	// is running keeps its disk open.
	unusedMax = 7 * 24 * time.Hour
)

// A Disk is a disk with programs, for the guests that can run them.
type Disk struct {
	Path string
	// Architecture of the programs, by libvirt's name; empty means any (scripts).
	Architecture string
	// Windows: they run on Windows.
	Windows bool
}

// A Program is a program of this host that guests run.
type Program struct {
	// Name in the guest. Linux and Windows show it unchanged if it is at most 30 characters of
	// a-z, 0-9, "-" and "_", with at most one dot.
	Name string
	// Path on this host.
	Path string
}

// Make makes a disk with the programs in dir, unless there is one, and returns its path. dir
// must be reachable for QEMU. A disk is made once for each version of the programs, which is
// recognized by their inode, size and times.
func Make(dir string, programs []Program) (path string, err error) {
	key, err := keyOf(programs)
	if err != nil {
		return "", fmt.Errorf("make the tools disk: %w", err)
	}
	path = filepath.Join(dir, key+suffix)
	now := time.Now()
	if err := os.Chtimes(path, now, now); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("use the tools disk: %w", err)
	}
	if err = write(dir, path, programs); err == nil {
		err = removeUnused(dir, now.Add(-unusedMax))
	}
	if err != nil {
		return "", fmt.Errorf("make the tools disk: %w", err)
	}
	return path, nil
}

// keyOf identifies this version of the programs.
func keyOf(programs []Program) (string, error) {
	type version struct {
		Program
		Device, Inode    uint64
		Size             int64
		Modified, Status unix.Timespec
	}
	hash := sha256.New()
	encoder := json.NewEncoder(hash)
	for _, p := range programs {
		var stat unix.Stat_t
		if err := unix.Stat(p.Path, &stat); err != nil {
			return "", &fs.PathError{Op: "stat", Path: p.Path, Err: err}
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFREG {
			return "", fmt.Errorf("%s is not a regular file", p.Path)
		}
		if err := encoder.Encode(version{p, uint64(stat.Dev), stat.Ino, stat.Size, stat.Mtim, stat.Ctim}); err != nil {
			return "", err
		}
	}
	fmt.Fprintln(hash, layout)
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}

// write writes the disk. It appears complete or not at all; another process may do the same.
func write(dir, path string, programs []Program) (err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	writer, err := iso9660.NewWriter()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, writer.Cleanup()) }()
	for _, p := range programs {
		if err := addProgram(writer, p); err != nil {
			return err
		}
	}
	file, err := os.CreateTemp(dir, "new-*"+suffix)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // unless it was renamed
	err = writer.WriteTo(file, label)
	if err == nil {
		err = file.Chmod(0o444)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}

func addProgram(writer *iso9660.ImageWriter, p Program) error {
	file, err := os.Open(p.Path)
	if err != nil {
		return err
	}
	defer file.Close()
	return writer.AddFile(file, p.Name)
}

// removeUnused removes disks that were last used before a time, and those that a process left
// unfinished.
func removeUnused(dir string, before time.Time) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return err
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err == nil && info.ModTime().Before(before) {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
