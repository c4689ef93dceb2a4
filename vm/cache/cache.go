// Package cache keeps disks and directories that jobs leave to later jobs of their owner.
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

// A Mode is the way in which a machine accesses its cache.
type Mode string

// The cache modes.
const (
	// Disk is a disk that one machine at a time can have. Concurrent machines of an owner
	// get one each.
	Disk Mode = "disk"
	// Share is a directory of this host, shared by virtiofs. All machines of an owner have
	// the same directory.
	Share Mode = "share"
)

// Label identifies the cache in the guest: it is the serial number of the disk, or the mount
// tag of the share.
const Label = "sardine-cache"

// A Config describes a cache that a machine shares with earlier and later machines of its
// owner. Only guests read its contents.
//
// Dir contains
//
//	disks/<key>/0.img, 1.img, …   raw, sparse
//	shares/<key>/files/           what the guests see
//	removed/                      to be deleted
//	reserved/                     files that processes lock which start a machine
//	lock                          held while a cache is chosen or removed
//
// and a file "owner" for each key, for administrators. The caches in use are those in the
// records of running machines, and those that are reserved until libvirt knows the machine:
// no state that a crash could leave behind. In addition, QEMU locks each disk against a second
// writer.
type Config struct {
	Mode Mode
	// Dir is the directory of all caches. The user of QEMU can search it.
	Dir string
	// Key identifies the owner: 32 hexadecimal digits. Owner is its readable name.
	Key, Owner string
	// Size of a disk, in bytes. A disk of another size is replaced.
	Size int64
}

const (
	// lockTimeout bounds the wait for processes that choose or remove caches.
	lockTimeout = 2 * time.Minute
	lockPoll    = 20 * time.Millisecond
)

const (
	diskDir     = "disks"
	shareDir    = "shares"
	removedDir  = "removed"
	reservedDir = "reserved"
	filesDir    = "files"
	ownerFile   = "owner"
	diskSuffix  = ".img"
)

var validKey = regexp.MustCompile(`^[0-9a-f]{32}$`)

// A Cache is a cache that was acquired for a machine.
type Cache struct {
	// Name in the record: the path below Config.Dir.
	Name string
	// Path of the disk, or of the share's directory.
	Path string
	// Fresh: no guest has written to it yet.
	Fresh bool
}

// Acquire finds a cache that no other machine has, or creates one, and reserves it until
// release is called. Call it when libvirt knows the machine, with the cache in its record, or
// when the start has failed.
func (c *Config) Acquire(ctx context.Context, h *virt.Host) (_ Cache, release func() error, err error) {
	unlock, err := lock(ctx, c.Dir)
	if err != nil {
		return Cache{}, nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	acquired, err := c.choose(ctx, h)
	if err != nil {
		return Cache{}, nil, err
	}
	release, err = reserve(c.Dir, acquired.Name)
	return acquired, release, err
}

// ModeOf returns the mode of the cache of that name; empty if the name is empty.
func ModeOf(name string) Mode {
	switch kind, _, _ := strings.Cut(name, "/"); kind {
	case diskDir:
		return Disk
	case shareDir:
		return Share
	}
	return ""
}

// choose finds a cache that no other machine has, or creates one. The caller holds the lock.
func (c *Config) choose(ctx context.Context, h *virt.Host) (Cache, error) {
	if !validKey.MatchString(c.Key) {
		return Cache{}, fmt.Errorf("%w: %q is not the key of a cache", errdefs.ErrInvalid, c.Key)
	}
	switch c.Mode {
	case Disk:
		taken, err := inUse(ctx, h, c.Dir)
		if err != nil {
			return Cache{}, err
		}
		return c.chooseDisk(taken)
	case Share:
		return c.chooseShare()
	}
	return Cache{}, fmt.Errorf("%w: cache is %q: want disk or share", errdefs.ErrInvalid, c.Mode)
}

// inUse returns the names of the caches of all machines, also of those that are starting. The
// caller holds the lock of dir. A machine whose reservation has ended is in libvirt's list,
// because that is asked for afterwards.
func inUse(ctx context.Context, h *virt.Host, dir string) (map[string]bool, error) {
	names, err := reserved(dir)
	if err != nil {
		return nil, err
	}
	machines, err := record.List(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("find out which caches are in use: %w", err)
	}
	for _, m := range machines {
		names[m.Record.Cache] = true
	}
	return names, nil
}

// chooseDisk takes the first free disk, which most jobs have filled.
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
			return chosen, fmt.Errorf("create a cache disk: %w", err)
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = makeSparse(chosen.Path, c.Size)
	}
	if err != nil {
		return chosen, fmt.Errorf("create a cache disk: %w", err)
	}
	allocated, err := diskusage.OfFile(chosen.Path)
	chosen.Fresh = allocated == 0
	return chosen, err
}

// chooseShare creates the directory if necessary. No other user of this host may access it:
// guests choose the owners and modes of its files, also setuid.
func (c *Config) chooseShare() (Cache, error) {
	if err := c.makeDirs(shareDir, 0o700); err != nil {
		return Cache{}, err
	}
	name := path.Join(shareDir, c.Key)
	chosen := Cache{Name: name, Path: filepath.Join(c.Dir, name, filesDir)}
	err := os.Mkdir(chosen.Path, 0o700)
	chosen.Fresh = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return chosen, fmt.Errorf("create the directory for a cache: %w", err)
	}
	return chosen, nil
}

// makeDirs creates the directory of the owner's caches of one kind, with the file that names
// the owner.
func (c *Config) makeDirs(kind string, mode fs.FileMode) error {
	dir := filepath.Join(c.Dir, kind, c.Key)
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("create the directory for caches: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, ownerFile), []byte(c.Owner+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the owner of the cache: %w", err)
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

// lock prevents other processes from choosing or removing caches in dir.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("create the directory for caches: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	file := flock.New(filepath.Join(dir, "lock"))
	if _, err := file.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for the lock %s: %w", file.Path(), err)
	}
	return file.Close, nil
}
