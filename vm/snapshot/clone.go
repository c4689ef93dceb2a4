package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/snapshot/savefile"
)

// maxFirmwareFile is the maximum size of a file of the seed, in bytes.
const maxFirmwareFile = 64 << 10

// A Saved holds the domain of a snapshot and its memory.
type Saved struct {
	// Domain as it was saved. [Saved.Rename] gives it to a clone.
	Domain *libvirtxml.Domain

	snapshot *Snapshot
	head     *savefile.Head
	memory   *os.File
}

// Load reads the saved domain. The error is an [ErrNone] if that fails.
func (s *Snapshot) Load() (_ *Saved, err error) {
	memory, err := os.Open(s.path(memoryFile))
	if err != nil {
		return nil, none("open its memory: %w", err)
	}
	defer func() {
		if err != nil {
			memory.Close()
		}
	}()
	head, err := savefile.Read(memory)
	if err != nil {
		return nil, none("%s: %w", memory.Name(), err)
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(head.XML); err != nil {
		return nil, none("%s: the XML of the domain: %w", memory.Name(), err)
	}
	return &Saved{Domain: d, snapshot: s, head: head, memory: memory}, nil
}

// Close closes the memory.
func (s *Saved) Close() error { return s.memory.Close() }

// A Clone is a machine that resumes from a snapshot.
type Clone struct {
	Name string
	// Dir is the directory of its files.
	Dir   string
	Files domain.Files
}

// Rename changes the saved domain to that of a clone, with its own UEFI variables and host
// key file. Nothing that the guest can see changes.
func (s *Saved) Rename(c Clone) error {
	d := s.Domain
	if err := s.snapshot.copyNVRAM(d, c.Files.NVRAM); err != nil {
		return err
	}
	if err := s.copyFirmwareFiles(d, c.Dir); err != nil {
		return err
	}
	was := d.Name
	d.ID, d.Name, d.UUID, d.Metadata = nil, c.Name, uuid.NewString(), nil
	if d.GenID != nil {
		// The guest's kernel then reseeds its random number generator.
		d.GenID.Value = uuid.NewString()
	}
	domain.LogConsole(d, c.Files.Console)
	for i := range d.Devices.Channels {
		if source := d.Devices.Channels[i].Source; source != nil && source.UNIX != nil && strings.Contains(source.UNIX.Path, was) {
			source.UNIX.Path = "" // libvirt chooses a path with the name of the domain
		}
	}
	return s.snapshot.placeOverlays(d, c.Files)
}

// copyFirmwareFiles copies the files of the snapshot that the fw_cfg device shows to the guest.
func (s *Saved) copyFirmwareFiles(d *libvirtxml.Domain, dir string) error {
	for _, file := range seed.FirmwareFiles {
		to := filepath.Join(dir, file)
		if err := disk.CopyFile(s.snapshot.path(file), to, maxFirmwareFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy the seed of the snapshot: %w", err)
		}
		for i := range d.SysInfo {
			if d.SysInfo[i].FWCfg == nil {
				continue
			}
			for e := range d.SysInfo[i].FWCfg.Entry {
				if entry := &d.SysInfo[i].FWCfg.Entry[e]; entry.File == filepath.Join(s.snapshot.Files, file) {
					entry.File = to
				}
			}
		}
	}
	return nil
}

// copyNVRAM copies the UEFI variables for a clone.
func (s *Snapshot) copyNVRAM(d *libvirtxml.Domain, to string) error {
	if !disk.HasNVRAM(d.OS) {
		return nil
	}
	err := disk.CopyFile(s.path(disk.NVRAMFile), to, disk.MaxNVRAM)
	if errors.Is(err, fs.ErrNotExist) {
		return none("its UEFI variables are missing")
	}
	if err != nil {
		return fmt.Errorf("copy the UEFI variables of the snapshot: %w", err)
	}
	disk.SetNVRAM(d.OS, to)
	return nil
}

// placeOverlays replaces each disk of the saved domain by the overlay of the clone.
func (s *Snapshot) placeOverlays(d *libvirtxml.Domain, files domain.Files) error {
	for _, saved := range s.Disks {
		found := false
		for i := range d.Devices.Disks {
			device := &d.Devices.Disks[i]
			if disk.SourcePath(device) != saved.Was {
				continue
			}
			found = true
			device.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: files.Overlays[saved.Name]}}
			// libvirt probes the chain. The headers have been checked.
			device.BackingStore = nil
		}
		if !found {
			return none("the saved machine has no disk %s", saved.Was)
		}
	}
	return nil
}
