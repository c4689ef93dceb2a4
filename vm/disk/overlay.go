package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gitlab-sardine-executor/vm/errdefs"
)

// qemuImgTimeout bounds one run of qemu-img, which writes a header of some
// hundred kilobytes: only a dead file system makes it slow.
const qemuImgTimeout = 30 * time.Second

// A BackingFile is a disk image that overlays are put on.
type BackingFile struct {
	// Path of the image, and what it holds: "qcow2" or "raw". The format is
	// written into the overlay, so that QEMU never guesses it from the content.
	Path   string
	Format string
	// VirtualSize in bytes; 0 means that qemu-img reads it from the base, which
	// is only for bases that can be trusted.
	VirtualSize int64
}

// CloneQCOW2 makes an empty qcow2 overlay on base and returns its absolute
// path. target is the file to create; if it is a directory, or empty for the
// current one, the overlay is called like the base, with the extension .qcow2.
// Nothing is ever overwritten: if the name is taken, name-1, name-2, … are
// tried; the name is taken by exclusive creation, so that two clones at once
// get two files.
//
// size, in bytes, grows the disk; a size below the base's leaves it as it is.
func CloneQCOW2(ctx context.Context, base BackingFile, target string, size int64) (string, error) {
	if base.Format != "qcow2" && base.Format != "raw" {
		return "", fmt.Errorf("clone %s: format %q is neither qcow2 nor raw", base.Path, base.Format)
	}
	// An absolute name keeps QEMU from reading a colon in it as the end of a
	// protocol's name.
	basePath, err := filepath.Abs(base.Path)
	if err != nil {
		return "", fmt.Errorf("clone %s: %w", base.Path, err)
	}
	if target, err = filepath.Abs(target); err != nil {
		return "", fmt.Errorf("clone %s: %w", base.Path, err)
	}
	if info, err := os.Stat(target); err == nil && info.IsDir() {
		target = filepath.Join(target, OverlayName(basePath))
	}
	overlay, err := reserve(target)
	if err != nil {
		return "", fmt.Errorf("clone %s: %w", base.Path, err)
	}
	args := []string{"create", "-q", "-f", "qcow2", "-F", base.Format, "-b", basePath}
	if size = max(size, base.VirtualSize); size > 0 {
		// -u: the base is not opened. Its size is known, and nothing but the
		// guest's QEMU has to read what a stranger made.
		args = append(args, "-u", overlay, strconv.FormatInt(size, 10))
	} else {
		args = append(args, overlay)
	}
	if err := qemuImg(ctx, args...); err != nil {
		return "", errors.Join(fmt.Errorf("clone %s to %s: %w", base.Path, overlay, err), os.Remove(overlay))
	}
	return overlay, nil
}

// OverlayName is what an overlay on base is called.
func OverlayName(base string) string {
	return strings.TrimSuffix(filepath.Base(base), filepath.Ext(base)) + ".qcow2"
}

// reserve creates the file path, or path-1, path-2, … (before the extension),
// whichever is the first that nobody has.
func reserve(path string) (string, error) {
	for name := range Numbered(path) {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return name, f.Close()
	}
	panic("unreachable: Numbered does not end")
}

// Numbered counts path, path-1, path-2, … without end; the number comes before
// the extension.
func Numbered(path string) iter.Seq[string] {
	ext := filepath.Ext(path)
	stem := strings.TrimSuffix(path, ext)
	return func(yield func(string) bool) {
		for name, n := path, 1; yield(name); n++ {
			name = fmt.Sprintf("%s-%d%s", stem, n, ext)
		}
	}
}

func qemuImg(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, qemuImgTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: qemu-img is not installed (Debian: qemu-utils)", errdefs.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}

// CloneDisks puts an overlay on each of the disks that a machine writes to, in
// dir, and returns the paths by the disks' names. Disks which only back others
// get none, CD-ROMs neither: they are shared. grow, in bytes, is the least size
// of the first disk. On failure nothing is left.
func CloneDisks(ctx context.Context, disks []Disk, dir string, grow int64) (_ map[string]string, err error) {
	overlays := make(map[string]string)
	defer func() {
		if err != nil {
			for _, path := range overlays {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, d := range TopDisks(disks) {
		if d.CDROM {
			continue
		}
		base := BackingFile{Path: d.Path, Format: d.Format, VirtualSize: d.VirtualSize}
		path, err := CloneQCOW2(ctx, base, filepath.Join(dir, OverlayName(d.Path)), grow)
		if err != nil {
			return overlays, err
		}
		overlays[d.Name] = path
		grow = 0
	}
	return overlays, nil
}

// TopDisks are the disks that no other disk backs onto.
func TopDisks(disks []Disk) []Disk {
	backs := make(map[string]bool)
	for _, d := range disks {
		backs[d.Backing] = true
	}
	var top []Disk
	for _, d := range disks {
		if !backs[d.Name] {
			top = append(top, d)
		}
	}
	return top
}
