package toolsdisk

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kdomanski/iso9660"
	"libvirt.org/go/libvirtxml"
)

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// contents returns the files of a disk.
func contents(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	image, err := iso9660.OpenImage(file)
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, child := range children {
		text, err := io.ReadAll(child.Reader())
		if err != nil {
			t.Fatal(err)
		}
		files[child.Name()] = string(text)
	}
	return files
}

// A disk is made once for each version of the programs, also by several processes at once,
// and everyone may read it.
func TestMake(t *testing.T) {
	dir, from := filepath.Join(t.TempDir(), "tools"), t.TempDir()
	large := strings.Repeat("gitlab-runner\n", 1<<17)
	programs := []Program{
		{"gitlab-runner", writeFile(t, filepath.Join(from, "runner"), large)},
		{"step-runner", writeFile(t, filepath.Join(from, "steps"), "#!/bin/sh\n")},
	}
	paths := make([]string, 4)
	var all sync.WaitGroup
	for i := range paths {
		all.Go(func() {
			var err error
			if paths[i], err = Make(dir, programs); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(slices.Compact(paths)) != 1 {
		t.Fatalf("one version has the disks %q", paths)
	}
	if got := contents(t, paths[0]); len(got) != 2 || got["gitlab-runner"] != large || got["step-runner"] != "#!/bin/sh\n" {
		t.Errorf("%d files", len(got))
	}
	made, err := os.Stat(paths[0])
	if err != nil || made.Mode().Perm() != 0o444 {
		t.Errorf("%v, %v", made, err)
	}
	again, err := Make(dir, programs)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(again); err != nil || !os.SameFile(made, info) {
		t.Errorf("made again: %v", err)
	}
	// A new version, of the same size.
	writeFile(t, programs[1].Path+".new", "#!/bin/sx\n")
	if err := os.Rename(programs[1].Path+".new", programs[1].Path); err != nil {
		t.Fatal(err)
	}
	updated, err := Make(dir, programs)
	if err != nil || updated == paths[0] || contents(t, updated)["step-runner"] != "#!/bin/sx\n" {
		t.Errorf("%s, %v", updated, err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 2 {
		t.Errorf("left: %q", files)
	}
}

// Disks that are not used any more, and what a killed process left, are removed.
func TestMakeRemovesUnused(t *testing.T) {
	dir, from := t.TempDir(), t.TempDir()
	for name, age := range map[string]time.Duration{"old.iso": unusedMax + time.Hour, "new-123.iso": unusedMax + time.Hour, "used.iso": unusedMax - time.Hour} {
		path := writeFile(t, filepath.Join(dir, name), "")
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	path, err := Make(dir, []Program{{"gitlab-runner", writeFile(t, filepath.Join(from, "runner"), "x")}})
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	want := []string{path, filepath.Join(dir, "used.iso")}
	slices.Sort(want)
	if !slices.Equal(files, want) {
		t.Errorf("left: %q, want %q", files, want)
	}
}

func TestMakeFails(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none"), dir, "/dev/zero"} {
		if made, err := Make(filepath.Join(dir, "tools"), []Program{{"gitlab-runner", path}}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: made %q, %v", path, made, err)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "tools", "*")); len(files) > 0 {
		t.Errorf("left: %q", files)
	}
}

func TestAttach(t *testing.T) {
	machine := func(arch, board string, disks ...libvirtxml.DomainDisk) *libvirtxml.Domain {
		return &libvirtxml.Domain{
			OS:      &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: arch, Machine: board}},
			Devices: &libvirtxml.DomainDeviceList{Disks: slices.Clone(disks)},
		}
	}
	on := func(device, target, bus string) libvirtxml.DomainDisk {
		return libvirtxml.DomainDisk{Device: device, Target: &libvirtxml.DomainDiskTarget{Dev: target, Bus: bus}}
	}
	linux, windows, script := &Disk{Path: "/t.iso", Architecture: "x86_64"}, &Disk{Path: "/t.iso", Architecture: "x86_64", Windows: true}, &Disk{Path: "/t.iso"}
	ide := []libvirtxml.DomainDisk{on("disk", "hda", "ide"), on("cdrom", "hdb", "ide"), on("cdrom", "hdc", "ide"), on("disk", "hdd", "ide")}
	for _, test := range []struct {
		name                string
		disk                *Disk
		domain              *libvirtxml.Domain
		device, target, bus string
	}{
		{"virtio", linux, machine("x86_64", "q35", on("disk", "vda", "virtio")), "disk", "vdz", "virtio"},
		{"a free target", linux, machine("x86_64", "q35", on("disk", "vda", "virtio"), on("disk", "vdz", "virtio")), "disk", "vdy", "virtio"},
		{"after a CD-ROM", script, machine("x86_64", "q35", on("cdrom", "sda", "sata"), on("disk", "sdb", "scsi")), "disk", "sdz", "scsi"},
		{"IDE", linux, machine("x86_64", "pc", ide[:2]...), "disk", "hdd", "ide"},
		{"IDE is full", linux, machine("x86_64", "pc", ide...), "", "", ""},
		{"a script, for any machine", script, machine("aarch64", "virt", on("disk", "vda", "virtio")), "disk", "vdz", "virtio"},
		{"another architecture", linux, machine("aarch64", "virt", on("disk", "vda", "virtio")), "", "", ""},
		{"Windows on virtio", windows, machine("x86_64", "pc-q35-7.2", on("disk", "vda", "virtio")), "cdrom", "sdz", "sata"},
		{"Windows on IDE", windows, machine("x86_64", "pc", ide[:1]...), "cdrom", "hdd", "ide"},
		{"none", nil, machine("x86_64", "q35", on("disk", "vda", "virtio")), "", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(test.domain.Devices.Disks)
			test.disk.Attach(test.domain, true)
			added := test.domain.Devices.Disks[before:]
			if got := AttachedTo(test.domain); got != (test.device != "") || got != (len(added) == 1) {
				t.Fatalf("attached: %v, %d disks", got, len(added))
			}
			if test.device == "" {
				return
			}
			d := added[0]
			if d.Device != test.device || d.Target.Dev != test.target || d.Target.Bus != test.bus || d.ReadOnly == nil || d.Driver.Type != "raw" {
				t.Errorf("%s %+v", d.Device, d.Target)
			}
			if Detach(test.domain); AttachedTo(test.domain) || len(test.domain.Devices.Disks) != before {
				t.Error("not detached")
			}
		})
	}
}
