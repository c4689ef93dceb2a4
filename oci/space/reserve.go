package space

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gitlab-sardine-executor/internal/diskusage"

	"github.com/docker/go-units"
	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// A Reserve is the space that unpacking leaves free on the file system of the store: the
// larger of the two values. The zero value reserves nothing.
type Reserve struct {
	Bytes int64
	// Percent of the file system, 0 to 100.
	Percent float64
}

// DefaultReserve is 1 GiB or 5 %.
var DefaultReserve = Reserve{Bytes: 1 << 30, Percent: 5}

// Of returns the reserve on a file system of total bytes, in bytes.
func (r Reserve) Of(total int64) int64 {
	return max(r.Bytes, int64(float64(total)/100*r.Percent))
}

// Room is the space on a file system that this user can use, in bytes.
type Room struct{ Free, Total int64 }

// Of returns the space on the file system of a directory.
func Of(dir string) (Room, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return Room{}, fmt.Errorf("measuring the free space in %s: %w", dir, err)
	}
	return Room{Free: int64(stat.Bavail) * stat.Bsize, Total: int64(stat.Blocks) * stat.Bsize}, nil
}

// A ReserveError says that the reserve is reached. It wraps ENOSPC: a later try may succeed.
type ReserveError struct {
	Dir           string
	Reserve, Free int64
	Needed        int64 // 0 if it is not known
	Others        int64 // bytes that pulls in progress still need
}

func (e *ReserveError) Error() string {
	text := fmt.Sprintf("storage_reserve: %s must stay free on %s; ", size(e.Reserve), e.Dir)
	if e.Needed > 0 {
		text += fmt.Sprintf("the image needs about %s, ", size(e.Needed))
	}
	if e.Others > 0 {
		text += fmt.Sprintf("other pulls under way %s, ", size(e.Others))
	}
	return text + fmt.Sprintf("%s are: free some (gitlab-sardine-executor prune) or lower it", size(e.Free))
}

func (e *ReserveError) Unwrap() error { return syscall.ENOSPC }

func size(n int64) string { return units.BytesSize(float64(max(n, 0))) }

// roomStep is how many bytes a pull writes before it measures the free space again, so that
// concurrent pulls notice each other.
const roomStep = 16 << 20

// A Budget is the space that the disks of one image may still use. A nil Budget, or one
// without a reserve, is unlimited.
type Budget struct {
	dir     string
	Reserve Reserve
	Ask     func(dir string) (Room, error)

	left atomic.Int64 // bytes until the next measurement
	mu   sync.Mutex
}

// Spend accounts for n bytes of data, before they are written. Holes do not count.
func (r *Budget) Spend(n int64) error {
	if r == nil || r.Reserve == (Reserve{}) || r.left.Add(-n) >= 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left.Load() >= 0 { // another disk of the image has asked
		return nil
	}
	now, err := r.Ask(r.dir)
	if err != nil {
		r.left.Store(roomStep) // try without
		return nil
	}
	reserve := r.Reserve.Of(now.Total)
	spare := now.Free - reserve
	if spare < n {
		return &ReserveError{Dir: filepath.Dir(r.dir), Reserve: reserve, Free: now.Free}
	}
	// Use smaller steps as space runs out: other pulls use it, too.
	r.left.Store(max(min(roomStep, spare/8), n) - n)
	return nil
}

// pullFile is a file in the directory of an image that is being unpacked. It holds the
// [Announcement], and is locked during the pull.
const pullFile = ".pull"

// An Announcement tells other pulls how much space a pull needs.
type Announcement struct {
	Since time.Time `json:"since"`
	// Needed is the minimum space for the image, in bytes.
	Needed int64 `json:"needed"`

	Lock *flock.Flock `json:"-"`
}

// Announce writes the announcement of the pull into dir. It ignores errors: the pull can
// proceed without.
func Announce(dir string, needed int64) *Announcement {
	a := &Announcement{Since: time.Now(), Needed: needed, Lock: flock.New(filepath.Join(dir, pullFile))}
	if locked, err := a.Lock.TryLock(); err != nil || !locked {
		return a
	}
	if raw, err := json.Marshal(a); err == nil {
		_ = os.WriteFile(a.Lock.Path(), raw, 0o600)
	}
	return a
}

// End removes the announcement.
func (a *Announcement) End() error {
	err := os.Remove(a.Lock.Path())
	if os.IsNotExist(err) {
		err = nil
	}
	if failed := a.Lock.Close(); err == nil {
		err = failed
	}
	return err
}

const (
	// paceAfter is how long a pull counts with all that it announces. Then its pace counts: a
	// registry that sends next to nothing, of a disk as large as it likes to say, must not
	// make the pulls of others fail.
	paceAfter = time.Minute
	// paceFor is how far ahead the pace is followed.
	paceFor = 10 * time.Minute
)

// due is the space, in bytes, that other pulls have to leave to a pull which has written
// allocated bytes by now.
func (a *Announcement) due(now time.Time, allocated int64) int64 {
	due := max(0, a.Needed-allocated)
	elapsed := now.Sub(a.Since)
	if elapsed < paceAfter {
		return due
	}
	return min(due, int64(float64(allocated)*float64(paceFor)/float64(elapsed)))
}

// Earlier returns how many bytes pulls that started before this one still need in the same
// store. If two pulls do not both fit, the earlier one proceeds, unless it hardly proceeds.
func (a *Announcement) Earlier() int64 {
	own := filepath.Dir(a.Lock.Path())
	others, _ := filepath.Glob(filepath.Join(filepath.Dir(own), PartialPrefix+"*", pullFile))
	var sum int64
	for _, path := range others {
		dir := filepath.Dir(path)
		if dir == own || !isLocked(path) {
			continue
		}
		if other, ok := Announced(dir); ok && other.Since.Before(a.Since) {
			sum += other.due(time.Now(), Allocated(dir))
		}
	}
	return sum
}

// Announced returns the announcement of the pull into dir, without its lock; ok is false if
// there is none. The pull may have ended since.
func Announced(dir string) (a Announcement, ok bool) {
	raw, err := os.ReadFile(filepath.Join(dir, pullFile))
	return a, err == nil && json.Unmarshal(raw, &a) == nil
}

// isLocked reports whether the pull that wrote the file is still running.
func isLocked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return err == unix.EWOULDBLOCK
}

// Allocated is the space that the files of a directory take.
func Allocated(dir string) int64 {
	var sum int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, entry := range entries {
		info, err := os.Lstat(filepath.Join(dir, entry.Name()))
		if err != nil || info.Mode()&fs.ModeType != 0 {
			continue
		}
		sum += diskusage.Of(info)
	}
	return sum
}

// PartialPrefix marks directories of incomplete images.
const PartialPrefix = ".partial-"

func NewBudget(dir string, reserve Reserve, ask func(dir string) (Room, error)) *Budget {
	return &Budget{dir: dir, Reserve: reserve, Ask: ask}
}
