package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// A Mode says how a machine gets at its cache.
type Mode string

// The cache modes.
const (
	// Disk is a disk of its own, which one machine at a time can have. Machines
	// of one owner that run side by side get one each.
	Disk Mode = "disk"
	// Share is a directory of this host, by virtiofs. All machines of the owner
	// have the same at the same time.
	Share Mode = "share"
)

// Label is how a guest knows its cache: the serial number of the disk, or the
// mount tag of the share.
const Label = "sardine-cache"

// A Config describes what a machine finds of earlier machines of its owner, and leaves to
// later ones. Nobody but guests ever looks into it: for this host it is bytes.
//
// Below Dir lie
//
//	disks/<key>/0.img, 1.img, …   raw, sparse
//	shares/<key>/files/           what the guests see
//	removed/                      on its way out
//	lock                          held while a cache is chosen or removed
//
// with a file "owner" beside each key's, for people. Which caches are in use stands
// in the records of the machines, and nowhere else: there is no state that a crash
// could leave behind. Whoever chooses holds the lock until libvirt knows the machine.
// QEMU's own lock on a disk would stop a second writer that all this overlooked.
type Config struct {
	Mode Mode
	// Dir holds the caches of all owners. QEMU's user passes through it.
	Dir string
	// Key is whose cache it is, 32 hexadecimal digits; Owner says the same to people.
	Key, Owner string
	// Size is the size that a guest sees of a disk, in bytes. A disk of another size
	// is made anew.
	Size int64
}

// lockTimeout bounds the wait for somebody who starts a machine with a cache.
const (
	lockTimeout = 2 * time.Minute
	lockPoll    = 20 * time.Millisecond
)

const (
	diskDir    = "disks"
	shareDir   = "shares"
	removedDir = "removed"
	filesDir   = "files"
	ownerFile  = "owner"
	diskSuffix = ".img"
)

var validKey = regexp.MustCompile(`^[0-9a-f]{32}$`)

// A Cache is a cache that a machine gets.
type Cache struct {
	// Name is its path below Config.Dir, as the record keeps it.
	Name string
	// Path of the disk, or of the share's directory.
	Path string
	// Fresh says that no guest has ever written to it.
	Fresh bool
}

// Acquire finds a cache that no running machine has, or makes one. No other machine gets
// a cache until release is called, which must happen when libvirt knows the machine,
// with the cache in its record, or when nothing comes of it.
func (c *Config) Acquire(ctx context.Context, h *virt.Host) (_ Cache, release func() error, err error) {
	release, err = lock(ctx, c.Dir)
	if err != nil {
		return Cache{}, nil, err
	}
	acquired, err := c.choose(ctx, h)
	if err != nil {
		return Cache{}, nil, errors.Join(err, release())
	}
	return acquired, release, nil
}

// ModeOf is the mode of the cache of that name; empty if the name is.
func ModeOf(name string) Mode {
	switch kind, _, _ := strings.Cut(name, "/"); kind {
	case diskDir:
		return Disk
	case shareDir:
		return Share
	}
	return ""
}

// choose finds a cache that no running machine has, or makes one. The caller holds
// the lock.
func (c *Config) choose(ctx context.Context, h *virt.Host) (Cache, error) {
	if !validKey.MatchString(c.Key) {
		return Cache{}, fmt.Errorf("%w: %q is no key of a cache", errdefs.ErrInvalid, c.Key)
	}
	switch c.Mode {
	case Disk:
		taken, err := inUse(ctx, h)
		if err != nil {
			return Cache{}, err
		}
		return c.chooseDisk(taken)
	case Share:
		return c.chooseShare()
	}
	return Cache{}, fmt.Errorf("%w: cache is %q: want disk or share", errdefs.ErrInvalid, c.Mode)
}

// inUse are the names of the caches of all machines.
func inUse(ctx context.Context, h *virt.Host) (map[string]bool, error) {
	machines, err := record.List(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("find out which caches are in use: %w", err)
	}
	names := make(map[string]bool)
	for _, m := range machines {
		names[m.Record.Cache] = true
	}
	return names, nil
}

// chooseDisk takes the first disk that is free: so the one that most jobs have
// filled goes to most jobs.
func (c *Config) chooseDisk(taken map[string]bool) (Cache, error) {
	if err := c.makeDirs(diskDir, 0o711); err != nil {
		return Cache{}, err
	}
	chosen := Cache{}
	for n := 0; ; n++ {
		chosen.Name = path.Join(diskDir, c.Key, strconv.Itoa(n)+diskSuffix)
		if !taken[chosen.Name] {
			break
		}
	}
	chosen.Path = filepath.Join(c.Dir, chosen.Name)
	info, err := os.Lstat(chosen.Path)
	if err == nil && (info.Size() != c.Size || !info.Mode().IsRegular()) {
		if err := os.Remove(chosen.Path); err != nil {
			return chosen, fmt.Errorf("make a cache disk: %w", err)
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = makeSparse(chosen.Path, c.Size)
	}
	if err != nil {
		return chosen, fmt.Errorf("make a cache disk: %w", err)
	}
	allocated, err := diskusage.OfFile(chosen.Path)
	chosen.Fresh = allocated == 0
	return chosen, err
}

// chooseShare makes the directory unless it is there. No other user of this host may
// get at what guests put there: they choose owners and modes, setuid included.
func (c *Config) chooseShare() (Cache, error) {
	if err := c.makeDirs(shareDir, 0o700); err != nil {
		return Cache{}, err
	}
	name := path.Join(shareDir, c.Key)
	chosen := Cache{Name: name, Path: filepath.Join(c.Dir, name, filesDir)}
	err := os.Mkdir(chosen.Path, 0o700)
	chosen.Fresh = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return chosen, fmt.Errorf("make a directory for a cache: %w", err)
	}
	return chosen, nil
}

// makeDirs makes the directory of the owner's caches of one kind, and says there
// whose they are.
func (c *Config) makeDirs(kind string, mode fs.FileMode) error {
	dir := filepath.Join(c.Dir, kind, c.Key)
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("make the directory for caches: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ownerFile), []byte(c.Owner+"\n"), 0o600); err != nil {
		return fmt.Errorf("say whose the cache is: %w", err)
	}
	return nil
}

func makeSparse(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Close())
}

// lock keeps everybody else from choosing or removing caches below dir.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory for caches: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	file := flock.New(filepath.Join(dir, "lock"))
	if _, err := file.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for the lock %s: %w", file.Path(), err)
	}
	return file.Close, nil
}
