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

// cloneFiles are where the files of a clone come from: they are made, or, for a
// clone that is only printed, no more than named.
type cloneFiles interface {
	// overlay on base.
	overlay(ctx context.Context, base disk.Disk) (path string, err error)
	// nvram gives the domain the path of UEFI variables of its own; otherwise is
	// where those of its source are if the domain does not say.
	nvram(os *libvirtxml.DomainOS, clone, otherwise string) (path string, err error)
}

// realFiles are made in dir.
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

func (f *realFiles) nvram(system *libvirtxml.DomainOS, clone, otherwise string) (string, error) {
	path := firstFree(filepath.Join(f.dir, nvramName(clone)), nil)
	f.undo.Add(func() error { return removeIfThere(path) })
	if err := disk.CopyNVRAM(system, path, otherwise); err != nil {
		return "", err
	}
	disk.SetNVRAM(system, path)
	return path, nil
}

// removeIfThere removes a file that somebody else may have removed.
func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// planned are files that would be made in dir.
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

// nvramName is what the UEFI variables of a clone are called, as libvirt would.
func nvramName(clone string) string { return clone + "_VARS.fd" }

// firstFree is path, or path-1, path-2, …: the first that does not exist and is
// not taken otherwise.
func firstFree(path string, taken map[string]bool) string {
	for name := range disk.Numbered(path) {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) && !taken[name] {
			return name
		}
	}
	panic(fmt.Sprintf("unreachable: no free name like %s", path))
}

// defaultNVRAM is where libvirt before 9.2 keeps the UEFI variables of a domain
// that asks for firmware by name, and does not say so in the domain's XML; empty
// if that is not known.
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
