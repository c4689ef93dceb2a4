package define

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/virt"
)

// cloneFiles creates the files of a clone, or only chooses their names for a clone that is
// only printed.
type cloneFiles interface {
	// overlay returns the path of an overlay on base.
	overlay(ctx context.Context, base disk.Disk) (path string, err error)
	// nvram gives the domain its own UEFI variables. fallback is the file with those of the
	// source if its domain does not name one.
	nvram(os *libvirtxml.DomainOS, clone, fallback string) (path string, err error)
}

// realFiles creates files in dir.
type realFiles struct {
	dir  string
	undo *rollback.Stack
}

func (f *realFiles) overlay(ctx context.Context, base disk.Disk) (string, error) {
	path, err := disk.CloneQCOW2(ctx, disk.BackingFile{Path: base.Path, Format: base.Format, VirtualSize: base.VirtualSize}, f.dir, 0)
	if err == nil {
		f.undo.Add(func() error { return removeIfThere(path) })
	}
	return path, err
}

func (f *realFiles) nvram(system *libvirtxml.DomainOS, clone, fallback string) (string, error) {
	path := firstFree(filepath.Join(f.dir, nvramName(clone)), nil)
	f.undo.Add(func() error { return removeIfThere(path) })
	if err := disk.CopyNVRAM(system, path, fallback); err != nil {
		return "", err
	}
	disk.SetNVRAM(system, path)
	return path, nil
}

// removeIfThere removes a file if it exists.
func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// planned chooses names of files in dir.
func planned(dir string) cloneFiles { return &plannedFiles{dir: dir, taken: map[string]bool{}} }

type plannedFiles struct {
	dir   string
	taken map[string]bool
}

func (f *plannedFiles) name(name string) string {
	path := firstFree(filepath.Join(f.dir, name), f.taken)
	f.taken[path] = true
	return path
}

func (f *plannedFiles) overlay(_ context.Context, base disk.Disk) (string, error) {
	return f.name(disk.OverlayName(base.Path)), nil
}

func (f *plannedFiles) nvram(system *libvirtxml.DomainOS, clone, _ string) (string, error) {
	path := f.name(nvramName(clone))
	disk.SetNVRAM(system, path)
	return path, nil
}

// nvramName returns libvirt's name for the file with the UEFI variables of a domain.
func nvramName(clone string) string { return clone + "_VARS.fd" }

// firstFree returns the first of path, path-1, path-2, … that neither exists nor is taken.
func firstFree(path string, taken map[string]bool) string {
	for name := range disk.Numbered(path) {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) && !taken[name] {
			return name
		}
	}
	panic(fmt.Sprintf("unreachable: no free name like %s", path))
}

// defaultNVRAM returns the file in which libvirt before 9.2 stores the UEFI variables of a
// domain with automatically selected firmware. The domain's XML does not name it. It is
// empty if the path is not known.
func defaultNVRAM(h *virt.Host, domain string) string {
	dir := "/var/lib/libvirt/qemu/nvram"
	if !h.System() {
		config, err := os.UserConfigDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(config, "libvirt", "qemu", "nvram")
	}
	return filepath.Join(dir, nvramName(domain))
}
