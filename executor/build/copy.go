package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/joblog"
)

// Copy copies a file or a directory of this host into the guest, as COPY in a Containerfile: a
// directory's content goes into the directory Dst. A file becomes Dst, or goes into it if Dst
// ends with a slash. root owns the copies; permissions and times stay. Symbolic links in a
// directory stay links, so that nothing outside of it is read.
type Copy struct {
	// Src is a path on this host, and Dst an absolute path in the guest.
	Src, Dst string

	isDir bool
}

// ParseCopy reads SRC:DST. DST begins after the last colon before a slash, so SRC may contain
// colons.
func ParseCopy(text string) (*Copy, error) {
	i := strings.LastIndex(text, ":/")
	if i <= 0 || strings.ContainsRune(text, 0) {
		return nil, fmt.Errorf("--copy %s: want SRC:DST, with an absolute path in the guest as DST", shellescape.Quote(text))
	}
	return &Copy{Src: text[:i], Dst: text[i+1:]}, nil
}

func (c *Copy) String() string { return "--copy " + shellescape.Quote(c.Src+":"+c.Dst) }

// check looks at every file: a build must not fail late because of one.
func (c *Copy) check() error {
	info, err := os.Stat(c.Src)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	c.isDir = info.IsDir()
	err = c.each(func(root *os.Root, name string, info fs.FileInfo) error {
		if info.Mode().IsRegular() {
			file, err := openFile(root, name)
			if err != nil {
				return err
			}
			return file.Close()
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// each calls do for the file, or for all that is in the directory, with names below root. What
// is neither a file nor a directory or symbolic link is an error.
func (c *Copy) each(do func(root *os.Root, name string, info fs.FileInfo) error) error {
	visit := func(root *os.Root, name string, info fs.FileInfo) error {
		if t := info.Mode().Type(); t != 0 && t != fs.ModeDir && t != fs.ModeSymlink {
			return fmt.Errorf("%s is neither a file nor a directory or symbolic link", shellescape.Quote(filepath.Join(root.Name(), name)))
		}
		return do(root, name, info)
	}
	if !c.isDir {
		// The path itself may be a symbolic link, as for cp.
		real, err := filepath.EvalSymlinks(c.Src)
		if err != nil {
			return err
		}
		root, err := os.OpenRoot(filepath.Dir(real))
		if err != nil {
			return err
		}
		defer root.Close()
		info, err := root.Lstat(filepath.Base(real))
		if err != nil {
			return err
		}
		return visit(root, filepath.Base(real), info)
	}
	root, err := os.OpenRoot(c.Src)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || name == "." {
			return err
		}
		return visit(root, name, info)
	})
}

// openFile opens a regular file. Without O_NONBLOCK, a FIFO would block.
func openFile(root *os.Root, name string) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no longer a regular file", shellescape.Quote(name))
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// target returns the directory in the guest into which the archive is unpacked, and the name
// in it of the file; empty for a directory.
func (c *Copy) target() (dir, name string) {
	switch {
	case c.isDir:
		return path.Clean(c.Dst), ""
	case strings.HasSuffix(c.Dst, "/"):
		return path.Clean(c.Dst), filepath.Base(c.Src)
	}
	return path.Dir(path.Clean(c.Dst)), path.Base(path.Clean(c.Dst))
}

// unpack unpacks the archive on standard input in the directory $1.
const unpack = `umask 022; mkdir -p -- "$1" && cd -- "$1" && exec tar -x -p -f - 2>&1`

func (c *Copy) do(ctx context.Context, guest guest, log *joblog.Log) error {
	dir, name := c.target()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := c.pack(w, name)
		packed <- err
		w.CloseWithError(err)
	}()
	err := runAsRoot(ctx, guest, log, r, unpack, dir)
	r.CloseWithError(io.ErrClosedPipe)
	if failed := <-packed; failed != nil && !errors.Is(failed, io.ErrClosedPipe) {
		return failed // which is why tar failed in the guest
	}
	return err
}

// pack writes the archive. rename is the name of the only file; empty for a directory.
func (c *Copy) pack(w io.Writer, rename string) error {
	archive := tar.NewWriter(w)
	err := c.each(func(root *os.Root, name string, info fs.FileInfo) error {
		return addFile(archive, root, name, rename, info)
	})
	if err != nil {
		return err
	}
	return archive.Close()
}

func addFile(archive *tar.Writer, root *os.Root, name, rename string, info fs.FileInfo) (err error) {
	link := ""
	if info.Mode().Type() == fs.ModeSymlink {
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name, header.Format = "./"+filepath.ToSlash(name), tar.FormatGNU // which busybox reads, too
	if rename != "" {
		header.Name = "./" + rename
	}
	if info.IsDir() {
		header.Name += "/"
	}
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "root", "root"
	// busybox takes these, in a GNU header, for the beginning of the name.
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	if !info.Mode().IsRegular() {
		return archive.WriteHeader(header)
	}
	file, err := openFile(root, name)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.Copy(archive, io.LimitReader(file, header.Size))
	if err == nil && n < header.Size {
		err = fmt.Errorf("%s changed while it was copied", shellescape.Quote(name))
	}
	return err
}
