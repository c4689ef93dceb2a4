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

// A Reserve is the room that unpacking leaves free on the file system of the store:
// the larger of the two. The zero value reserves nothing.
type Reserve struct {
	Bytes int64
	// Percent of the file system, 0 to 100.
	Percent float64
}

// DefaultReserve is 1 GiB or 5 %.
var DefaultReserve = Reserve{Bytes: 1 << 30, Percent: 5}

// Of is the reserve, in bytes, on a file system of a size.
func (r Reserve) Of(total int64) int64 {
	return max(r.Bytes, int64(float64(total)/100*r.Percent))
}

// Room is what a file system has, in bytes, for this user.
type Room struct{ Free, Total int64 }

// Of asks the file system of a directory.
func Of(dir string) (Room, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return Room{}, fmt.Errorf("asking how much room there is in %s: %w", dir, err)
	}
	return Room{Free: int64(stat.Bavail) * stat.Bsize, Total: int64(stat.Blocks) * stat.Bsize}, nil
}

// A ReserveError says that the reserve is reached. It is an ENOSPC: room may be there
// another time.
type ReserveError struct {
	Dir           string
	Reserve, Free int64
	Needed        int64 // 0 if it is not known
	Others        int64 // of needed, what pulls under way are still going to take
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

// roomStep is how many bytes one pull writes at most before it asks for the free
// space again. Several pulls see what the others have written.
const roomStep = 16 << 20

// A Budget is what the disks of one image may still take before the reserve is reached.
// The nil room has no end, nor has one without a reserve but that of the file system.
type Budget struct {
	dir     string
	Reserve Reserve
	Ask     func(dir string) (Room, error)

	left atomic.Int64 // may be written before ask is asked again
	mu   sync.Mutex
}

// Spend is called before n bytes are written that are no hole.
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
		r.left.Store(roomStep) // then we shall see
		return nil
	}
	reserve := r.Reserve.Of(now.Total)
	spare := now.Free - reserve
	if spare < n {
		return &ReserveError{Dir: filepath.Dir(r.dir), Reserve: reserve, Free: now.Free}
	}
	// Near the end in smaller steps: others take their share, too.
	r.left.Store(max(min(roomStep, spare/8), n) - n)
	return nil
}

// PullFile, in the directory of an image that is being unpacked, says what the pull
// needs. It is locked as long as the pull goes on.
const PullFile = ".pull"

// An Announcement is what a pull tells the others.
type Announcement struct {
	Since time.Time `json:"since"`
	// Needed is the space that the image takes at least, in bytes.
	Needed int64 `json:"needed"`

	Lock *flock.Flock
}

// Announce writes the announcement of the pull in dir. An error is no reason not to
// pull.
func Announce(dir string, needed int64) *Announcement {
	a := &Announcement{Since: time.Now(), Needed: needed, Lock: flock.New(filepath.Join(dir, PullFile))}
	if locked, err := a.Lock.TryLock(); err != nil || !locked {
		return a
	}
	if raw, err := json.Marshal(a); err == nil {
		_ = os.WriteFile(a.Lock.Path(), raw, 0o600)
	}
	return a
}

// End takes the announcement back.
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

// Earlier is what pulls that began before this one are still going to write to the
// same store, in bytes. So of two that do not both fit, one does.
func (a *Announcement) Earlier() int64 {
	own := filepath.Dir(a.Lock.Path())
	others, _ := filepath.Glob(filepath.Join(filepath.Dir(own), PartialPrefix+"*", PullFile))
	var sum int64
	for _, path := range others {
		dir := filepath.Dir(path)
		if dir == own || !isLocked(path) {
			continue
		}
		var other Announcement
		raw, err := os.ReadFile(path)
		if err == nil && json.Unmarshal(raw, &other) == nil && other.Since.Before(a.Since) {
			sum += max(0, other.Needed-Allocated(dir))
		}
	}
	return sum
}

// isLocked: the pull that wrote the file goes on.
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

// PartialPrefix marks directories of images that are not complete.
const PartialPrefix = ".partial-"

func NewBudget(dir string, reserve Reserve, ask func(dir string) (Room, error)) *Budget {
	return &Budget{dir: dir, Reserve: reserve, Ask: ask}
}
