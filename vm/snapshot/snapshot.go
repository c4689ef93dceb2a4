// Package snapshot resumes machines from the saved memory of a machine that has booted. It
// can be removed: package vm uses it in snapshot.go, and at one place in ready.go.
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

// A Snapshot is the saved memory and the disks of a machine that has booted and not run any
// part of a job. Its clones resume where it stopped, each with new overlays on the
// snapshot's disks. That takes a fraction of a second, however long the guest takes to
// boot. The snapshots of an image are in one directory, each in a directory named after
// its key:
//
//	snapshot.json   what it is of, and how to log in; written last
//	memory          saved by libvirt: see package savefile
//	*.qcow2         its disks: overlays on those of the image
//	nvram.fd        its UEFI variables, if it has any
//	hostkey         its SSH host key, if it was given one
//	config.ign      its config of Ignition, with that key
//
// Only its owner and QEMU may read the guest's memory. Next to the directory is a file with
// the extension .lock. A process that makes or removes the snapshot locks it exclusively,
// a process that starts a machine from it shares the lock.
type Snapshot struct {
	// Key is a hash of everything that the machine depends on (see [Machine]).
	Key  string
	Made time.Time
	// Failure is the reason why there is only this note: the machine could not be saved, or
	// did not resume. It is valid for failureLife.
	Failure string `json:",omitempty"`
	// Files is the directory of the machine's files when it was saved. Disks are its
	// overlays, in the order of the image's disks.
	Files string
	Disks []overlay
	// HostKey is the host key of its SSH server, and Seed the login key that it was given at
	// boot, if any.
	HostKey string
	Seed    ed25519.PrivateKey `json:",omitempty"`

	dir  string
	lock *flock.Flock
}

// An overlay is the overlay on a disk of the image.
type overlay struct {
	Name string // of the disk in the image
	File string // in the snapshot's directory
	Was  string // its path when the machine was saved
}

// failureLife is how long a failure counts. Its cause may have been temporary, such as a full
// disk.
const failureLife = 15 * time.Minute

const (
	// maxPerImage is the maximum number of snapshots of an image. It has several if sections
	// of the settings use it for different kinds of machine.
	maxPerImage = 4
	// minLife is the minimum age of a snapshot that is replaced by one of another kind.
	minLife = 24 * time.Hour
)

// tmpSuffix is the extension of the directory of an incomplete snapshot.
const tmpSuffix = ".new"

const (
	noteFile   = "snapshot.json"
	memoryFile = "memory"
)

// ErrNone: the machine cannot resume from a snapshot, or no snapshot can be made of it. It
// can be booted.
var ErrNone = errors.New("no snapshot")

func none(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNone, fmt.Errorf(format, args...))
}

// of returns the snapshot of that key in the directory of an image's snapshots. It may not
// exist yet.
func of(parent, key string) *Snapshot {
	return &Snapshot{Key: key, dir: filepath.Join(parent, key[:16])}
}

// lockOf returns the lock of the snapshot in that directory.
func lockOf(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, fmt.Errorf("create the directory for snapshots: %w", err)
	}
	return flock.New(dir + ".lock"), nil
}

// open reads the snapshot and locks it until it is closed. The error is an [ErrNone] if there
// is none.
func (s *Snapshot) open() error {
	lock, err := lockOf(s.dir)
	if err != nil {
		return err
	}
	if got, err := lock.TryRLock(); err != nil {
		return fmt.Errorf("lock the snapshot: %w", err)
	} else if !got {
		return none("another process is making or removing it")
	}
	if err := s.read(); err != nil {
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// read reads the note of the snapshot. The caller holds the lock.
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

// failureError is an [ErrNone] that a new attempt would repeat.
type failureError string

func (e failureError) Error() string { return fmt.Sprintf("%v: %s", ErrNone, string(e)) }

func (e failureError) Is(target error) bool { return target == ErrNone }

// Close releases the lock. The snapshot can be removed then.
func (s *Snapshot) Close() error { return s.lock.Close() }

// path of one of its files.
func (s *Snapshot) path(file string) string { return filepath.Join(s.dir, file) }

// BackingDisks returns the backing files for the overlays of clones. It checks their headers:
// each file was written by the QEMU of an untrusted guest, and programs that open it also
// open the backing file that the header names.
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

// checkOverlay compares the header of an overlay on base with what [disk.CloneQCOW2] writes.
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
		return fmt.Errorf("its backing file is %q (%s), not %s (%s)", h.BackingFile, h.BackingFormat, basePath, base.Format)
	case h.ExternalData() || h.Encryption != qcow2.EncryptionNone:
		return errors.New("it has an external data file, or is encrypted")
	case h.VirtualSize < base.VirtualSize:
		return fmt.Errorf("it has %d bytes, its backing file %d", h.VirtualSize, base.VirtualSize)
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

// markFailed replaces the snapshot by a note with the reason why there is none. The caller
// holds the lock exclusively.
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
		return fmt.Errorf("record that there is no snapshot: %w", err)
	}
	return nil
}

// Distrust replaces a snapshot from which a machine did not resume by a note with the reason,
// unless there is another snapshot by now. A process that is just starting a machine from
// it notices by itself.
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
