// Package snapshot starts machines from the saved memory of one that has booted. It can be
// taken out: package snapshot uses it in one file.
package snapshot

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/vm/disk"
)

// A Snapshot is a machine of an image that has booted and then was saved, memory and
// disks, before it ran anything of a job. Its clones go on where it stopped, each with
// overlays of its own on the snapshot's disks: that takes a fraction of a second,
// whatever the guest takes to boot. In the directory of the image's snapshots each has a
// directory, named after its key:
//
//	snapshot.json   what it is of, and how to log in; written last
//	memory          what libvirt saved: see package savefile
//	*.qcow2         its disks, which are overlays on the image's
//	nvram.fd        its UEFI variables, if it has some
//	hostkey         its SSH host key, if it was given one
//
// It holds the guest's memory and is for nobody to read but its owner, and QEMU. Beside
// it lies a file with the extension .lock: locked exclusively by whoever makes or
// removes the snapshot, shared by whoever starts a machine from it.
type Snapshot struct {
	// Key is a hash of everything that went into the machine (see [Machine]): a
	// snapshot of another key is of another machine.
	Key  string
	Made time.Time
	// Failure says why there is nothing but this note: the machine could not be saved,
	// or did not go on. It counts for failureLife.
	Failure string `json:",omitempty"`
	// Files is the directory that the files of the machine were in. Disks are its overlays,
	// in the order of the image's disks.
	Files string
	Disks []overlay
	// HostKey is what its SSH server showed, and Seed the key by which it lets us in
	// if it was given one at boot.
	HostKey string
	Seed    ed25519.PrivateKey `json:",omitempty"`

	dir  string
	lock *flock.Flock
}

// A overlay is the overlay of a disk of the image.
type overlay struct {
	Name string // of the disk in the image
	File string // in the snapshot's directory
	Was  string // its path when the machine was saved
}

// failureLife is how long nobody tries to make a snapshot again that could not be made:
// the cause may have been that the disk was full.
const failureLife = 15 * time.Minute

const (
	// maxPerImage is how many snapshots an image may have: sections of the settings can
	// give it to several kinds of machine.
	maxPerImage = 4
	// minLife is how long one of them is safe from the others.
	minLife = 24 * time.Hour
)

// tmpSuffix is the extension of the directory of a snapshot that is being made.
const tmpSuffix = ".new"

const (
	noteFile   = "snapshot.json"
	memoryFile = "memory"
)

// ErrNone: the machine cannot be started from a snapshot, or none can be made
// of it; it can be booted.
var ErrNone = errors.New("no snapshot")

func none(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNone, fmt.Errorf(format, args...))
}

// of is the snapshot of that key in the directory of an image's snapshots, which
// may not be there yet.
func of(parent, key string) *Snapshot {
	return &Snapshot{Key: key, dir: filepath.Join(parent, key[:16])}
}

// lockOf is the lock beside a snapshot's directory.
func lockOf(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory for snapshots: %w", err)
	}
	return flock.New(dir + ".lock"), nil
}

// open reads the snapshot and holds it until it is closed; the error is an [ErrNone]
// if there is none.
func (s *Snapshot) open() error {
	lock, err := lockOf(s.dir)
	if err != nil {
		return err
	}
	if got, err := lock.TryRLock(); err != nil {
		return fmt.Errorf("lock the snapshot: %w", err)
	} else if !got {
		return none("somebody is making or removing it")
	}
	if err := s.read(); err != nil {
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// read reads the note of the snapshot, whose lock is held.
func (s *Snapshot) read() error {
	text, err := os.ReadFile(s.path(noteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return none("there is none yet")
	}
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	found := Snapshot{dir: s.dir}
	if err := json.Unmarshal(text, &found); err != nil {
		return none("%s is damaged: %w", noteFile, err)
	}
	switch {
	case found.Key != s.Key:
		return none("it is of another machine")
	case found.Failure != "" && time.Since(found.Made) < failureLife:
		return failureError(found.Failure)
	case found.Failure != "":
		return none("there is none yet")
	}
	*s = found
	return nil
}

// failureError is an [ErrNone] for which it is no use to try again.
type failureError string

func (e failureError) Error() string { return fmt.Sprintf("%v: %s", ErrNone, string(e)) }

func (e failureError) Is(target error) bool { return target == ErrNone }

// Close releases the snapshot, which can be removed then.
func (s *Snapshot) Close() error { return s.lock.Close() }

// path of one of its files.
func (s *Snapshot) path(file string) string { return filepath.Join(s.dir, file) }

// BackingDisks are what the overlays of its clones stand on, if they are still what they were:
// each was written by the QEMU of a guest that nobody trusts, and whoever opens it
// follows its header to the file behind it.
func (s *Snapshot) BackingDisks(image []disk.Disk) ([]disk.Disk, error) {
	disks := make([]disk.Disk, 0, len(s.Disks))
	for _, d := range s.Disks {
		at := slices.IndexFunc(image, func(of disk.Disk) bool { return of.Name == d.Name })
		if at < 0 || d.File != filepath.Base(d.File) {
			return nil, none("the image has no disk %q", d.Name)
		}
		if err := checkOverlay(s.path(d.File), image[at]); err != nil {
			return nil, none("its disk %s: %w", d.File, err)
		}
		disks = append(disks, disk.Disk{Name: d.Name, Path: s.path(d.File), Format: "qcow2", VirtualSize: image[at].VirtualSize})
	}
	return disks, nil
}

// checkOverlay says what in the header of an overlay on base is not as [disk.CloneQCOW2]
// made it.
func checkOverlay(path string, base disk.Disk) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return err
	}
	basePath, err := filepath.Abs(base.Path)
	switch {
	case err != nil:
		return err
	case h.BackingFile != basePath || h.BackingFormat != base.Format:
		return fmt.Errorf("it stands on %q (%s), not on %s (%s)", h.BackingFile, h.BackingFormat, basePath, base.Format)
	case h.ExternalData() || h.Encryption != qcow2.EncryptionNone:
		return errors.New("it has an external data file, or is encrypted")
	case h.VirtualSize < base.VirtualSize:
		return fmt.Errorf("it has %d bytes, its base %d", h.VirtualSize, base.VirtualSize)
	}
	return nil
}

// writeNote completes the snapshot in dir.
func (s *Snapshot) writeNote(dir string) error {
	s.Made = time.Now().UTC().Truncate(time.Second)
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, noteFile), text, 0o600)
}

// markFailed leaves in place of the snapshot a note why there is none. The lock is held
// exclusively.
func (s *Snapshot) markFailed(reason error) error {
	note := Snapshot{Key: s.Key, Failure: strings.TrimPrefix(reason.Error(), ErrNone.Error()+": ")}
	err := os.RemoveAll(s.dir)
	if err == nil {
		err = os.Mkdir(s.dir, 0o700)
	}
	if err == nil {
		err = note.writeNote(s.dir)
	}
	if err != nil {
		return fmt.Errorf("note that there is no snapshot: %w", err)
	}
	return nil
}

// Distrust is [Snapshot.markFailed] for a snapshot from which a machine did not go on, unless
// there is another by now. Whoever starts another machine from it at this moment will
// find out alone.
func (s *Snapshot) Distrust(reason error) error {
	lock, err := lockOf(s.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if got, err := lock.TryLock(); !got || err != nil {
		return err
	}
	now := Snapshot{Key: s.Key, dir: s.dir}
	if err := now.read(); err == nil && !now.Made.Equal(s.Made) {
		return nil
	}
	return s.markFailed(reason)
}
