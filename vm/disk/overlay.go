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

// qemuImgTimeout bounds one run of qemu-img. It writes a header of some hundred kilobytes,
// which takes long only on a file system that does not respond.
const qemuImgTimeout = 30 * time.Second

// A BackingFile is a disk image on which overlays are created.
type BackingFile struct {
	// Path and Format ("qcow2" or "raw") of the image. The format is written to the
	// overlay, so that QEMU never guesses it from the content.
	Path   string
	Format string
	// VirtualSize in bytes. If it is 0, qemu-img reads it from the image, which must be
	// trusted then.
	VirtualSize int64
}

// CloneQCOW2 creates an empty qcow2 overlay on base and returns its absolute path. target is
// the file to create. If it is a directory, or empty for the current one, the overlay has
// the name of the base with the extension .qcow2. No file is overwritten: if the name is
// taken, CloneQCOW2 tries name-1, name-2, … It creates the file exclusively, so that
// concurrent clones get different files.
//
// size, in bytes, enlarges the disk. A size below that of the base has no effect.
func CloneQCOW2(ctx context.Context, base BackingFile, target string, size int64) (string, error) {
	if base.Format != "qcow2" && base.Format != "raw" {
		return "", fmt.Errorf("clone %s: format %q is neither qcow2 nor raw", base.Path, base.Format)
	}
	// QEMU takes text before a colon for a protocol, except in an absolute path.
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
		// -u: do not open the base. Its size is known, and only the QEMU of the guest
		// should read an untrusted file.
		args = append(args, "-u", overlay, strconv.FormatInt(size, 10))
	} else {
		args = append(args, overlay)
	}
	if err := qemuImg(ctx, args...); err != nil {
		return "", errors.Join(fmt.Errorf("clone %s to %s: %w", base.Path, overlay, err), os.Remove(overlay))
	}
	return overlay, nil
}

// OverlayName returns the name of an overlay on base.
func OverlayName(base string) string {
	return strings.TrimSuffix(filepath.Base(base), filepath.Ext(base)) + ".qcow2"
}

// reserve creates the file path, or the first of path-1, path-2, … that does not exist. The
// number is before the extension.
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

// Numbered yields path, path-1, path-2, … without end. The number is before the extension.
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

// CloneDisks creates overlays in dir on the disks that a machine writes to, and returns their
// paths by the names of the disks. Backing files and CD-ROMs are shared and get none.
// grow, in bytes, is the minimum size of the first disk. If CloneDisks fails, it leaves no
// file.
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

// TopDisks returns the disks that are not the backing file of another disk.
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
