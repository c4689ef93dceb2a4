package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

const aKey, anotherKey = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"

func aCache(t *testing.T, mode Mode) *Config {
	return &Config{Mode: mode, Dir: filepath.Join(t.TempDir(), "caches"), Key: aKey, Owner: "group/project", Size: 1 << 20}
}

func (c *Config) mustChoose(t *testing.T, h *virt.Host) Cache {
	t.Helper()
	chosen, err := c.choose(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return chosen
}

// machineWith starts a machine with the cache of that name.
func machineWith(t *testing.T, h *virt.Host, machine, cache string) (end func()) {
	t.Helper()
	metadata, err := record.Record{Job: "1", Cache: cache}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	dom := virttest.Start(t, h, &libvirtxml.Domain{Name: machine, Metadata: metadata})
	end = sync.OnceFunc(func() { dom.Destroy(context.Background()); dom.Free() })
	t.Cleanup(end)
	return end
}

// One machine at a time has a disk, and the first free disk is used first.
func TestChooseCacheDisk(t *testing.T) {
	h, c := virttest.Open(t), aCache(t, Disk)
	name := func(n int) string { return fmt.Sprintf("disks/%s/%d.img", aKey, n) }
	first := c.mustChoose(t, h)
	if first.Name != name(0) || !first.Fresh {
		t.Errorf("the first machine gets %+v", first)
	}
	end := machineWith(t, h, "first", first.Name)
	if second := c.mustChoose(t, h); second.Name != name(1) {
		t.Errorf("the second machine, beside the first, gets %+v", second)
	}
	machineWith(t, h, "second", name(1))
	if third := c.mustChoose(t, h); third.Name != name(2) {
		t.Errorf("the third machine gets %+v", third)
	}
	if err := os.WriteFile(first.Path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	end()
	if again := c.mustChoose(t, h); again.Name != name(0) || again.Fresh {
		t.Errorf("after the first machine a machine gets %+v, want what that one has used", again)
	}
	other := *c
	other.Key = anotherKey
	if chosen := other.mustChoose(t, h); strings.Contains(chosen.Name, aKey) || !chosen.Fresh {
		t.Errorf("another owner gets %+v", chosen)
	}
}

// A file that is not a disk of the configured size is replaced.
func TestCacheDiskIsReplaced(t *testing.T) {
	h := virttest.Open(t)
	for name, corrupt := range map[string]func(path string) error{
		"other size":    func(path string) error { return os.WriteFile(path, []byte("short"), 0o600) },
		"symbolic link": func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := aCache(t, Disk)
			if err := corrupt(c.mustChoose(t, h).Path); err != nil {
				t.Fatal(err)
			}
			chosen := c.mustChoose(t, h)
			info, err := os.Lstat(chosen.Path)
			if err != nil || info.Mode() != 0o600 || info.Size() != c.Size || !chosen.Fresh {
				t.Errorf("got %+v with %v, %v", chosen, info, err)
			}
		})
	}
}

func TestCacheKeyIsNotAPath(t *testing.T) {
	h := virttest.Open(t)
	for _, key := range []string{"", "..", "../" + aKey, strings.ToUpper(aKey), aKey + "/x"} {
		c := aCache(t, Disk)
		c.Key = key
		if _, err := c.choose(t.Context(), h); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

// No other machine gets a cache between Acquire and the start of its machine.
func TestCachesAreLocked(t *testing.T) {
	h, c := virttest.Open(t), aCache(t, Disk)
	const machines = 8
	names := make([]string, machines)
	var all sync.WaitGroup
	for i := range machines {
		all.Go(func() {
			acquired, release, err := c.Acquire(t.Context(), h)
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(10 * time.Millisecond) // as long as a start takes, and longer than a look
			machineWith(t, h, fmt.Sprintf("machine-%d", i), acquired.Name)
			if err := release(); err != nil {
				t.Error(err)
				return
			}
			names[i] = acquired.Name
		})
	}
	all.Wait()
	slices.Sort(names)
	if once := slices.Compact(slices.Clone(names)); len(once) != machines {
		t.Errorf("%d machines got %v", machines, names)
	}
}

// A machine that starts does not keep others from starting: its cache is reserved, for its own
// process alone. A process that died has reserved nothing.
func TestCachesAreReserved(t *testing.T) {
	h, c := virttest.Open(t), aCache(t, Disk)
	share := *c
	share.Mode = Share
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // less than lockTimeout
	defer cancel()
	acquire := func(c *Config) (Cache, func()) {
		t.Helper()
		acquired, release, err := c.Acquire(ctx, h)
		if err != nil {
			t.Fatal(err)
		}
		return acquired, func() {
			t.Helper()
			if err := release(); err != nil {
				t.Error(err)
			}
		}
	}
	prune := func(want ...string) {
		t.Helper()
		pruned, err := Prune(ctx, h, c.Dir, PruneOptions{UnusedSince: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range pruned {
			names = append(names, p.Name)
		}
		slices.Sort(names)
		slices.Sort(want)
		if !slices.Equal(names, want) {
			t.Errorf("pruned %q, want %q", names, want)
		}
	}
	first, failed := acquire(c)
	second, started := acquire(c)
	if first.Name == second.Name {
		t.Errorf("two machines get %s", first.Name)
	}
	shared, one := acquire(&share)
	again, other := acquire(&share)
	if shared.Name != again.Name {
		t.Errorf("the shares are %s and %s", shared.Name, again.Name)
	}
	one()
	prune() // all are reserved
	other()
	machineWith(t, h, "second", second.Name)
	started()
	failed()
	if third, release := acquire(c); third.Name != first.Name {
		t.Errorf("after a start that failed a machine gets %s, want %s", third.Name, first.Name)
	} else {
		release()
	}
	dead := filepath.Join(c.Dir, reservedDir, strings.ReplaceAll(first.Name, "/", "-"))
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	prune(shared.Name, first.Name)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file of a reservation that has ended: %v", err)
	}
}

func TestPruneCaches(t *testing.T) {
	h, c := virttest.Open(t), aCache(t, Disk)
	used, idle, old := c.mustChoose(t, h), Cache{}, Cache{}
	machineWith(t, h, "one", used.Name)
	idle = c.mustChoose(t, h)
	machineWith(t, h, "two", idle.Name)()
	other := *c
	other.Key = anotherKey
	old = other.mustChoose(t, h)
	share := *c
	share.Mode = Share
	shared := share.mustChoose(t, h)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(shared.Path, "link")); err != nil {
		t.Fatal(err)
	}
	month := time.Now().Add(-30 * 24 * time.Hour)
	for _, path := range []string{used.Path, old.Path, filepath.Join(filepath.Dir(shared.Path), ownerFile)} {
		if err := os.Chtimes(path, month, month); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(age time.Duration, dry bool) []string {
		t.Helper()
		pruned, err := Prune(t.Context(), h, c.Dir, PruneOptions{UnusedSince: time.Now().Add(-age), DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, p := range pruned {
			names = append(names, p.Name)
			if p.Owner != c.Owner || p.Size > 64<<10 {
				t.Errorf("pruned %+v", p)
			}
		}
		slices.Sort(names)
		return names
	}
	unused := []string{old.Name, shared.Name}
	slices.Sort(unused)
	if got := prune(time.Hour, true); !slices.Equal(got, unused) {
		t.Errorf("would prune %v, want %v", got, unused)
	}
	if got := prune(time.Hour, false); !slices.Equal(got, unused) {
		t.Errorf("pruned %v, want %v", got, unused)
	}
	if got := prune(0, false); !slices.Equal(got, []string{idle.Name}) {
		t.Errorf("pruned %v, want %v", got, idle.Name)
	}
	if left, err := List(c.Dir); err != nil || len(left) != 1 || left[0].Name != used.Name {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, gone := range []string{filepath.Dir(old.Path), filepath.Dir(shared.Path), filepath.Join(c.Dir, removedDir)} {
		if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	if pruned, err := Prune(t.Context(), h, filepath.Join(c.Dir, "nowhere"), PruneOptions{}); err != nil || len(pruned) > 0 {
		t.Errorf("of nothing: %v, %v", pruned, err)
	}
}
