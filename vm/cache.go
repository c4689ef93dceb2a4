package vm

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
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"gitlab-sardine-executor/vm/record"
)

// A CacheMode says how a machine gets at its cache.
type CacheMode string

// The cache modes.
const (
	// CacheDisk is a disk of its own, which one machine at a time can have. Machines
	// of one owner that run side by side get one each.
	CacheDisk CacheMode = "disk"
	// CacheShare is a directory of this host, by virtiofs. All machines of the owner
	// have the same at the same time.
	CacheShare CacheMode = "share"
)

// CacheLabel is how a guest knows its cache: the serial number of the disk, or the
// mount tag of the share.
const CacheLabel = "sardine-cache"

// A Cache is what a machine finds of earlier machines of its owner, and leaves to
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
type Cache struct {
	Mode CacheMode
	// Dir holds the caches of all owners. QEMU's user passes through it.
	Dir string
	// Key is whose cache it is, 32 hexadecimal digits; Owner says the same to people.
	Key, Owner string
	// Size is the size that a guest sees of a disk, in bytes. A disk of another size
	// is made anew.
	Size int64
}

// cacheLockTimeout bounds the wait for somebody who starts a machine with a cache.
const cacheLockTimeout = 2 * time.Minute

const (
	diskDir    = "disks"
	shareDir   = "shares"
	removedDir = "removed"
	filesDir   = "files"
	ownerFile  = "owner"
	diskSuffix = ".img"
)

var cacheKey = regexp.MustCompile(`^[0-9a-f]{32}$`)

// A chosenCache is a cache that a machine is about to get.
type chosenCache struct {
	// name is its path below Cache.Dir, as the record keeps it.
	name string
	path string // of the disk, or of the share's directory
	// fresh says that no guest has ever written to it.
	fresh bool
}

// choose finds a cache that no running machine has, or makes one. The caller holds
// the lock.
func (c *Cache) choose(ctx context.Context, h *Host) (chosenCache, error) {
	if !cacheKey.MatchString(c.Key) {
		return chosenCache{}, fmt.Errorf("%w: %q is no key of a cache", ErrSpec, c.Key)
	}
	switch c.Mode {
	case CacheDisk:
		inUse, err := cachesInUse(ctx, h)
		if err != nil {
			return chosenCache{}, err
		}
		return c.chooseDisk(inUse)
	case CacheShare:
		return c.chooseShare()
	}
	return chosenCache{}, fmt.Errorf("%w: cache is %q: want disk or share", ErrSpec, c.Mode)
}

// cachesInUse are the names of the caches of all machines.
func cachesInUse(ctx context.Context, h *Host) (map[string]bool, error) {
	machines, err := record.List(ctx, h.Host)
	if err != nil {
		return nil, fmt.Errorf("find out which caches are in use: %w", err)
	}
	inUse := make(map[string]bool)
	for _, m := range machines {
		inUse[m.Record.Cache] = true
	}
	return inUse, nil
}

// chooseDisk takes the first disk that is free: so the one that most jobs have
// filled goes to most jobs.
func (c *Cache) chooseDisk(inUse map[string]bool) (chosenCache, error) {
	if err := c.makeDirs(diskDir, 0o711); err != nil {
		return chosenCache{}, err
	}
	chosen := chosenCache{}
	for n := 0; ; n++ {
		chosen.name = path.Join(diskDir, c.Key, strconv.Itoa(n)+diskSuffix)
		if !inUse[chosen.name] {
			break
		}
	}
	chosen.path = filepath.Join(c.Dir, chosen.name)
	info, err := os.Lstat(chosen.path)
	if err == nil && (info.Size() != c.Size || !info.Mode().IsRegular()) {
		if err := os.Remove(chosen.path); err != nil {
			return chosen, fmt.Errorf("make a cache disk: %w", err)
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = makeSparse(chosen.path, c.Size)
	}
	if err != nil {
		return chosen, fmt.Errorf("make a cache disk: %w", err)
	}
	allocated, err := allocatedBytes(chosen.path)
	chosen.fresh = allocated == 0
	return chosen, err
}

// chooseShare makes the directory unless it is there. No other user of this host may
// get at what guests put there: they choose owners and modes, setuid included.
func (c *Cache) chooseShare() (chosenCache, error) {
	if err := c.makeDirs(shareDir, 0o700); err != nil {
		return chosenCache{}, err
	}
	name := path.Join(shareDir, c.Key)
	chosen := chosenCache{name: name, path: filepath.Join(c.Dir, name, filesDir)}
	err := os.Mkdir(chosen.path, 0o700)
	chosen.fresh = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return chosen, fmt.Errorf("make a directory for a cache: %w", err)
	}
	return chosen, nil
}

// makeDirs makes the directory of the owner's caches of one kind, and says there
// whose they are.
func (c *Cache) makeDirs(kind string, mode fs.FileMode) error {
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

// allocatedBytes is what a file takes on the disk.
func allocatedBytes(path string) (int64, error) {
	var stat syscall.Stat_t
	if err := syscall.Lstat(path, &stat); err != nil {
		return 0, fmt.Errorf("see how much %s takes: %w", path, err)
	}
	return stat.Blocks * 512, nil
}

// lockCaches keeps everybody else from choosing or removing caches below dir.
func lockCaches(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the directory for caches: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cacheLockTimeout)
	defer cancel()
	lock := flock.New(filepath.Join(dir, "lock"))
	if _, err := lock.TryLockContext(ctx, lockPoll); err != nil {
		return nil, fmt.Errorf("wait for whoever holds the lock %s: %w", lock.Path(), err)
	}
	return lock.Close, nil
}

// DropCache sees to it that no other machine gets the cache disk of this one, which
// keeps it until its end: it may be what a guest dies of. A share stays, since
// machines that run have it, too.
func (g *Guest) DropCache() error {
	if g.cache.path == "" || g.CacheMode() != CacheDisk {
		return nil
	}
	if err := os.Remove(g.cache.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop the cache disk: %w", err)
	}
	return nil
}

// CacheMode is how this machine has its cache; empty if it has none.
func (g *Guest) CacheMode() CacheMode {
	switch kind, _, _ := strings.Cut(g.record.Cache, "/"); kind {
	case diskDir:
		return CacheDisk
	case shareDir:
		return CacheShare
	}
	return ""
}

// CacheIsFresh says whether no guest has ever written to the cache that this machine
// was started with.
func (g *Guest) CacheIsFresh() bool { return g.cache.fresh }
