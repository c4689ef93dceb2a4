package vm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/vm/disk"
)

// A snapshot is a machine of an image that has booted and then was saved, memory
// and disks, before it ran anything of a job. [Start] makes machines of it that
// go on where it stopped, each with overlays of its own on the snapshot's disks:
// that takes a fraction of a second, whatever the guest takes to boot. In
// [Spec.SnapshotDir] each has a directory, named after its key:
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
type snapshot struct {
	// Key is a hash of everything that went into the machine (see snapshotKey): a
	// snapshot of another key is of another machine.
	Key  string
	Made time.Time
	// Obstacle says why there is nothing but this note: the machine could not be saved,
	// or did not go on. It counts for obstacleLife.
	Obstacle string `json:",omitempty"`
	// Files is the directory that the files of the machine were in. Disks are its overlays,
	// in the order of the image's disks.
	Files string
	Disks []snapshotDisk
	// HostKey is what its SSH server showed, and Seed the key by which it lets us in
	// if it was given one at boot.
	HostKey string
	Seed    ed25519.PrivateKey `json:",omitempty"`

	dir  string
	lock *flock.Flock
}

// A snapshotDisk is the overlay of a disk of the image.
type snapshotDisk struct {
	Name string // of the disk in the image
	File string // in the snapshot's directory
	Was  string // its path when the machine was saved
}

// obstacleLife is how long nobody tries to make a snapshot again that could not be made:
// the cause may have been that the disk was full.
const obstacleLife = 15 * time.Minute

const (
	// snapshotsMax is how many snapshots an image may have: sections of the settings can
	// give it to several kinds of machine.
	snapshotsMax = 4
	// snapshotLife is how long one of them is safe from the others.
	snapshotLife = 24 * time.Hour
)

// halfMade is the extension of the directory of a snapshot that is being made.
const halfMade = ".new"

const (
	snapshotNote   = "snapshot.json"
	snapshotMemory = "memory"
)

// ErrNoSnapshot: the machine cannot be started from a snapshot, or none can be made
// of it; it can be booted.
var ErrNoSnapshot = errors.New("no snapshot")

func noSnapshot(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNoSnapshot, fmt.Errorf(format, args...))
}

// snapshotObstacle says why no snapshot could be made of a machine; nil if one
// could.
func (h *Host) snapshotObstacle(d *libvirtxml.Domain, spec *Spec) error {
	switch {
	case spec.SnapshotDir == "":
		return noSnapshot("none is wanted")
	case spec.Network != UserNetwork:
		// The guest would go on with the address of another.
		return noSnapshot("only a guest on the network %q can go on under the address that it had", UserNetwork)
	case spec.Cache != nil:
		return noSnapshot("a cache belongs to one job")
	case h.System() && os.Geteuid() != 0:
		return noSnapshot("only root may read what the system's libvirt saves")
	case len(d.Devices.TPMs) > 0:
		return noSnapshot("the state of a TPM is not part of it")
	case len(d.Devices.Hostdevs) > 0 || len(d.Devices.Filesystems) > 0:
		return noSnapshot("it has devices of the host")
	}
	return nil
}

// snapshotKey identifies the machine that d, before it is given to one job, and
// spec describe, on this host as it is now. Everything that a guest has in its
// memory of host and settings is part of it.
func (h *Host) snapshotKey(d *libvirtxml.Domain, spec *Spec) (string, error) {
	doc, err := d.Marshal()
	if err != nil {
		return "", fmt.Errorf("write the domain of %s: %w", spec.Name, err)
	}
	qemu, err := h.QEMUVersion()
	if err != nil {
		return "", err
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return "", fmt.Errorf("ask for the version of the kernel: %w", err)
	}
	hash := sha256.New()
	err = json.NewEncoder(hash).Encode(struct {
		Domain              string
		Disks               []disk.Disk
		DiskSize            int64
		SSHPort             int
		User                string
		Passt               bool
		Libvirt, QEMU       uint32
		Kernel, Processor   string
		Addresses, Resolver []string
	}{
		doc, spec.Disks, spec.DiskSize, spec.SSHPort, spec.seedUser(),
		hasPasst(), h.Version(), qemu,
		unix.ByteSliceToString(kernel.Release[:]), processor(),
		uplinkAddresses(), resolverFiles(),
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// seedUser is the user that the guest is given at boot; empty if its image has one.
func (s *Spec) seedUser() string {
	if s.Seed == nil {
		return ""
	}
	return s.Seed.User()
}

// processor is what this host's processor can do: a guest that has looked takes
// it for granted.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return cpuFlags(string(text))
}

// cpuFlags are the lines that say what the first processor is and can do.
func cpuFlags(cpuinfo string) string {
	var said []string
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "model name", "microcode", "flags", "CPU implementer", "CPU part", "Features":
			said = append(said, strings.TrimSpace(value))
		}
	}
	return strings.Join(said, "\n")
}

// hasPasst says whether the guest's network is passt's, which gives it other addresses
// than QEMU's own does.
func hasPasst() bool {
	_, err := exec.LookPath("passt")
	return err == nil
}

// uplinkAddresses are the addresses from which this host speaks to the world, as
// passt gives them to its guests. Nothing is sent.
func uplinkAddresses() []string {
	var addresses []string
	for _, somewhere := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // RFC 5737, RFC 3849
		conn, err := net.Dial("udp", somewhere)
		if err != nil {
			continue // it has none of this family
		}
		addresses = append(addresses, conn.LocalAddr().(*net.UDPAddr).IP.String())
		conn.Close()
	}
	return addresses
}

// resolverFiles are what tells passt which name servers to give to its guests.
func resolverFiles() []string {
	var files []string
	for _, path := range []string{resolvConf, uplinkResolvConf} {
		text, _ := os.ReadFile(path)
		files = append(files, string(text))
	}
	return files
}

// snapshotOf is the snapshot of that key in the directory of an image's snapshots, which
// may not be there yet.
func snapshotOf(parent, key string) *snapshot {
	return &snapshot{Key: key, dir: filepath.Join(parent, key[:16])}
}

// snapshotLock is the lock beside a snapshot's directory.
func snapshotLock(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory for snapshots: %w", err)
	}
	return flock.New(dir + ".lock"), nil
}

// open reads the snapshot and holds it until it is closed; the error is an [ErrNoSnapshot]
// if there is none.
func (s *snapshot) open() error {
	lock, err := snapshotLock(s.dir)
	if err != nil {
		return err
	}
	if got, err := lock.TryRLock(); err != nil {
		return fmt.Errorf("lock the snapshot: %w", err)
	} else if !got {
		return noSnapshot("somebody is making or removing it")
	}
	if err := s.read(); err != nil {
		return errors.Join(err, lock.Close())
	}
	s.lock = lock
	return nil
}

// read reads the note of the snapshot, whose lock is held.
func (s *snapshot) read() error {
	text, err := os.ReadFile(s.path(snapshotNote))
	if errors.Is(err, fs.ErrNotExist) {
		return noSnapshot("there is none yet")
	}
	if err != nil {
		return fmt.Errorf("read the snapshot: %w", err)
	}
	found := snapshot{dir: s.dir}
	if err := json.Unmarshal(text, &found); err != nil {
		return noSnapshot("%s is damaged: %w", snapshotNote, err)
	}
	switch {
	case found.Key != s.Key:
		return noSnapshot("it is of another machine")
	case found.Obstacle != "" && time.Since(found.Made) < obstacleLife:
		return obstacleError(found.Obstacle)
	case found.Obstacle != "":
		return noSnapshot("there is none yet")
	}
	*s = found
	return nil
}

// obstacleError is an [ErrNoSnapshot] for which it is no use to try again.
type obstacleError string

func (e obstacleError) Error() string { return fmt.Sprintf("%v: %s", ErrNoSnapshot, string(e)) }

func (e obstacleError) Is(target error) bool { return target == ErrNoSnapshot }

func (s *snapshot) close() error { return s.lock.Close() }

// path of one of its files.
func (s *snapshot) path(file string) string { return filepath.Join(s.dir, file) }

// disks are what the overlays of its clones stand on, if they are still what they were:
// each was written by the QEMU of a guest that nobody trusts, and whoever opens it
// follows its header to the file behind it.
func (s *snapshot) disks(image []disk.Disk) ([]disk.Disk, error) {
	disks := make([]disk.Disk, 0, len(s.Disks))
	for _, d := range s.Disks {
		at := slices.IndexFunc(image, func(of disk.Disk) bool { return of.Name == d.Name })
		if at < 0 || d.File != filepath.Base(d.File) {
			return nil, noSnapshot("the image has no disk %q", d.Name)
		}
		if err := checkOverlay(s.path(d.File), image[at]); err != nil {
			return nil, noSnapshot("its disk %s: %w", d.File, err)
		}
		disks = append(disks, disk.Disk{Name: d.Name, Path: s.path(d.File), Format: "qcow2", VirtualSize: image[at].VirtualSize})
	}
	return disks, nil
}

// checkOverlay says what in the header of an overlay on base is not as [CloneQCOW2]
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
func (s *snapshot) writeNote(dir string) error {
	s.Made = time.Now().UTC().Truncate(time.Second)
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, snapshotNote), text, 0o600)
}

// giveUp leaves in place of the snapshot a note why there is none. The lock is held
// exclusively.
func (s *snapshot) giveUp(reason error) error {
	note := snapshot{Key: s.Key, Obstacle: strings.TrimPrefix(reason.Error(), ErrNoSnapshot.Error()+": ")}
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

// distrust is [snapshot.giveUp] for a snapshot from which a machine did not go on, unless
// there is another by now. Whoever starts another machine from it at this moment will
// find out alone.
func (s *snapshot) distrust(reason error) error {
	lock, err := snapshotLock(s.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if got, err := lock.TryLock(); !got || err != nil {
		return err
	}
	now := snapshot{Key: s.Key, dir: s.dir}
	if err := now.read(); err == nil && !now.Made.Equal(s.Made) {
		return nil
	}
	return s.giveUp(reason)
}

// DistrustSnapshot has nobody start a machine any more from the snapshot from which
// this one has not become ready, for reason.
func (g *Guest) DistrustSnapshot(reason error) error { return g.snapshot.distrust(reason) }

// SnapshotUse is how many snapshots there are below dir, in which each image that has
// some has a directory, and how many bytes they take of the disk. Those that are being
// made are not counted, but measured.
func SnapshotUse(dir string) (count int, size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // there is none, or it is gone since it was listed
		}
		if err != nil || entry.IsDir() {
			return err
		}
		if entry.Name() == snapshotMemory && filepath.Ext(filepath.Dir(path)) != halfMade {
			count++
		}
		bytes, err := diskusage.OfFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		size += bytes
		return err
	})
	return count, size, err
}

// RemoveSnapshots removes the snapshots of an image, whose directory is dir, but those
// that somebody makes, or starts a machine from, at this moment. Machines that were
// started from them go on.
func RemoveSnapshots(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove snapshots: %w", err)
	}
	var failed []error
	done := make(map[string]bool)
	for _, entry := range entries {
		name, _, _ := strings.Cut(entry.Name(), ".") // a snapshot, half of one, or a lock
		if !done[name] {
			failed = append(failed, removeSnapshot(filepath.Join(dir, name)))
		}
		done[name] = true
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return os.Remove(dir)
}

func removeSnapshot(dir string) error {
	lock, err := snapshotLock(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	got, err := lock.TryLock()
	if err != nil {
		return fmt.Errorf("lock the snapshot: %w", err)
	}
	if !got {
		return fmt.Errorf("the snapshot %s is in use", dir)
	}
	// The lock goes last. Whoever waits for it then makes or uses a snapshot that nobody
	// else knows to be in use: at worst it is removed under a machine that is being
	// started, which boots then.
	return errors.Join(os.RemoveAll(dir+halfMade), os.RemoveAll(dir), os.Remove(lock.Path()))
}

// makeRoom sees to it that the image may have another snapshot: the oldest one goes if
// it is old enough.
func (s *snapshot) makeRoom() error {
	notes, err := filepath.Glob(filepath.Join(filepath.Dir(s.dir), "*", snapshotNote))
	if err != nil {
		return err
	}
	notes = slices.DeleteFunc(notes, func(note string) bool { return filepath.Dir(note) == s.dir })
	if len(notes) < snapshotsMax {
		return nil
	}
	var oldest string
	made := time.Now()
	for _, note := range notes {
		if info, err := os.Stat(note); err == nil && info.ModTime().Before(made) {
			oldest, made = filepath.Dir(note), info.ModTime()
		}
	}
	if oldest == "" || time.Since(made) < snapshotLife {
		return noSnapshot("the image has %d already, of machines of other kinds", len(notes))
	}
	if err := removeSnapshot(oldest); err != nil {
		return noSnapshot("%w", err)
	}
	return nil
}
