package diskfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/oci"
)

// open opens a disk file: only a regular one, not through symbolic links, and only in
// directories that no other user can write to. Otherwise another user of this host could let a
// job read a file that the administrator did not mean. Errors that another try does not change
// are [oci.ErrNotFound] and [oci.ErrInvalid].
func open(path string) (*os.File, error) {
	if err := checkDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	// O_NONBLOCK, because the open of a FIFO waits for a writer.
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("%w: no file %s on this host", oci.ErrNotFound, path)
	case errors.Is(err, unix.ELOOP):
		return nil, symlinkError(path)
	case errors.Is(err, unix.ENXIO): // a socket, or a FIFO without a writer
		return nil, notRegular(path)
	case err != nil:
		return nil, fmt.Errorf("opening the disk %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func notRegular(path string) error {
	return fmt.Errorf("%w: %s is not a regular file", oci.ErrInvalid, path)
}

func symlinkError(path string) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return fmt.Errorf("%w: %s is a symbolic link or in a directory that is one: name the file itself, %s", oci.ErrInvalid, path, target)
	}
	return fmt.Errorf("%w: %s is a symbolic link", oci.ErrInvalid, path)
}

// checkDirs refuses directories in which another user can replace what is on the way to the
// file. As in sshd's StrictModes, each belongs to root or to this user, and only its owner can
// write to it. Above the file's own directory, the sticky bit is enough, as for /tmp.
func checkDirs(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		err := unix.Lstat(at, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			return fmt.Errorf("%w: no directory %s on this host", oci.ErrNotFound, at)
		case err != nil:
			return fmt.Errorf("looking at the directory %s: %w", at, err)
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			return symlinkError(at)
		case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
			return fmt.Errorf("%w: the directory %s belongs to another user, who could replace the disk: move the disk to one of root or of this user", oci.ErrInvalid, at)
		case st.Mode&0o022 != 0 && (at == dir || st.Mode&unix.S_ISVTX == 0):
			return fmt.Errorf("%w: other users can write to the directory %s, and so replace the disk: chmod go-w %[2]s", oci.ErrInvalid, at)
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}
