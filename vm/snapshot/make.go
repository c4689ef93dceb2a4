package snapshot

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/uuid"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/virt"
)

// saveTimeout bounds the time in which libvirt writes the guest's memory.
const saveTimeout = 5 * time.Minute

// A Draft is an incomplete snapshot. It is locked.
type Draft struct {
	snapshot *Snapshot
	lock     *flock.Flock
}

// Begin starts to make the snapshot of a machine; nil if there is one already. The error is an
// [ErrNone] if there can be none: the machine is of a kind that cannot be saved, or another
// process is making it.
func Begin(h *virt.Host, m *Machine) (_ *Draft, err error) {
	if err := m.check(h); err != nil {
		return nil, err
	}
	key, err := m.key(h)
	if err != nil {
		return nil, err
	}
	s := of(m.Dir, key)
	if err := s.open(); err == nil {
		return nil, s.Close()
	} else if errors.As(err, new(failureError)) {
		return nil, err
	}
	lock, err := lockOf(s.dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if got, err := lock.TryLock(); err != nil || !got {
		return nil, none("another process is making or using it")
	}
	if err := s.read(); err == nil {
		return nil, lock.Close() // another process was faster
	} else if !errors.Is(err, ErrNone) {
		return nil, err
	}
	if err := s.evictOldest(); err != nil {
		return nil, err
	}
	return &Draft{snapshot: s, lock: lock}, nil
}

// Close releases the lock.
func (d *Draft) Close() error { return d.lock.Close() }

// Fail records why there is no snapshot, so that the next job does not try again at once.
func (d *Draft) Fail(reason error) error { return d.snapshot.markFailed(reason) }

// A Source is a machine that is ready to be saved.
type Source struct {
	Domain *virt.Domain
	// Dir is the directory of its files.
	Dir string
	// Disks of the image, and the overlays on them by the names of the disks.
	Disks    []disk.Disk
	Overlays map[string]string
	// HostKey is the host key of its SSH server, and Key the login key that it was given at
	// boot, if any.
	HostKey string
	Key     ed25519.PrivateKey
	// Group of the user that QEMU runs as.
	Group int
}

// AddGenID adds a generation ID, from which the guest's kernel learns that it was cloned. It
// then reseeds its random number generator (Linux 5.18, Windows Server 2012). QEMU supports
// it for PCs only.
func AddGenID(d *libvirtxml.Domain) {
	if d.OS.Type.Arch == "x86_64" && d.Features != nil && d.Features.ACPI != nil {
		d.GenID = &libvirtxml.DomainGenID{Value: uuid.NewString()}
	}
}

// Save saves the machine, which ends, and completes the snapshot.
func (d *Draft) Save(ctx context.Context, from Source) (err error) {
	s := d.snapshot
	s.HostKey, s.Seed, s.Files = from.HostKey, from.Key, from.Dir
	dir := s.dir + tmpSuffix
	// These are from a process that died, or a snapshot with another key.
	for _, old := range []string{dir, s.dir} {
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove an old snapshot: %w", err)
		}
	}
	if err := makePrivateDir(dir, from.Group); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Chmod(from.Dir, 0o711); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	memory := filepath.Join(dir, memoryFile)
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	if err := from.Domain.Save(ctx, memory); err != nil {
		return err
	}
	if err := os.Chmod(memory, 0o400); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	if err := s.gather(from, dir); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	return os.Rename(dir, s.dir)
}

// makePrivateDir creates a directory that only this user and QEMU can search.
func makePrivateDir(dir string, group int) error {
	if err := os.Mkdir(dir, 0o700); err != nil || group == os.Getegid() {
		return err
	}
	return errors.Join(os.Chown(dir, -1, group), os.Chmod(dir, 0o710))
}

// gather moves the files of the saved machine to dir and writes the note.
func (s *Snapshot) gather(from Source, dir string) error {
	for _, image := range from.Disks {
		path, written := from.Overlays[image.Name]
		if !written {
			continue
		}
		file := filepath.Base(path)
		if err := os.Rename(path, filepath.Join(dir, file)); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dir, file), 0o444); err != nil {
			return err
		}
		s.Disks = append(s.Disks, overlay{Name: image.Name, File: file, Was: path})
	}
	for _, file := range append([]string{disk.NVRAMFile}, seed.FirmwareFiles...) {
		err := os.Rename(filepath.Join(from.Dir, file), filepath.Join(dir, file))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := disk.ChownDirToRoot(dir); err != nil {
		return err
	}
	return s.writeNote(dir)
}
