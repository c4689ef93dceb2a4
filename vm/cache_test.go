package vm

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

	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

const aKey, anotherKey = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"

func aCache(t *testing.T, mode CacheMode) *Cache {
	return &Cache{Mode: mode, Dir: filepath.Join(t.TempDir(), "caches"), Key: aKey, Owner: "group/project", Size: 1 << 20}
}

func (c *Cache) mustChoose(t *testing.T, h *Host) chosenCache {
	t.Helper()
	chosen, err := c.choose(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	return chosen
}

// machineWith starts a machine that has the cache of that name.
func machineWith(t *testing.T, h *Host, machine, cache string) (end func()) {
	t.Helper()
	metadata, err := record.Record{Job: "1", Cache: cache}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	dom := virttest.Start(t, h.Host, &libvirtxml.Domain{Name: machine, Metadata: metadata})
	end = sync.OnceFunc(func() { dom.Destroy(context.Background()); dom.Free() })
	t.Cleanup(end)
	return end
}

// A disk has one machine at a time, and the first that is free goes out first.
func TestChooseCacheDisk(t *testing.T) {
	h, c := testHost(t), aCache(t, CacheDisk)
	name := func(n int) string { return fmt.Sprintf("disks/%s/%d.img", aKey, n) }
	first := c.mustChoose(t, h)
	if first.name != name(0) || !first.fresh {
		t.Errorf("the first machine gets %+v", first)
	}
	end := machineWith(t, h, "first", first.name)
	if second := c.mustChoose(t, h); second.name != name(1) {
		t.Errorf("the second machine, beside the first, gets %+v", second)
	}
	machineWith(t, h, "second", name(1))
	if third := c.mustChoose(t, h); third.name != name(2) {
		t.Errorf("the third machine gets %+v", third)
	}
	if err := os.WriteFile(first.path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	end()
	if again := c.mustChoose(t, h); again.name != name(0) || again.fresh {
		t.Errorf("after the first machine a machine gets %+v, want what that one has used", again)
	}
	other := *c
	other.Key = anotherKey
	if chosen := other.mustChoose(t, h); strings.Contains(chosen.name, aKey) || !chosen.fresh {
		t.Errorf("another owner gets %+v", chosen)
	}
}

// What is not a disk of the size that the settings want is none.
func TestCacheDiskIsMadeAnew(t *testing.T) {
	h := testHost(t)
	for name, spoil := range map[string]func(path string) error{
		"other size":    func(path string) error { return os.WriteFile(path, []byte("short"), 0o600) },
		"symbolic link": func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := aCache(t, CacheDisk)
			if err := spoil(c.mustChoose(t, h).path); err != nil {
				t.Fatal(err)
			}
			chosen := c.mustChoose(t, h)
			info, err := os.Lstat(chosen.path)
			if err != nil || info.Mode() != 0o600 || info.Size() != c.Size || !chosen.fresh {
				t.Errorf("got %+v with %v, %v", chosen, info, err)
			}
		})
	}
}

func TestCacheKeyIsNoPath(t *testing.T) {
	h := testHost(t)
	for _, key := range []string{"", "..", "../" + aKey, strings.ToUpper(aKey), aKey + "/x"} {
		c := aCache(t, CacheDisk)
		c.Key = key
		if _, err := c.choose(t.Context(), h); !errors.Is(err, ErrSpec) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}

// Until libvirt knows a machine, its cache is nobody else's either.
func TestCachesAreLocked(t *testing.T) {
	h, c := testHost(t), aCache(t, CacheDisk)
	domain := func(name string) *libvirtxml.Domain {
		return &libvirtxml.Domain{Name: name, Devices: &libvirtxml.DomainDeviceList{}}
	}
	const machines = 8
	names := make([]string, machines)
	var all sync.WaitGroup
	for i := range machines {
		all.Go(func() {
			g := &Guest{host: h}
			d := domain(fmt.Sprintf("machine-%d", i))
			unlock, err := g.addCache(t.Context(), d, &Spec{Cache: c, Record: record.Record{Job: "1"}})
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(10 * time.Millisecond) // as long as a start takes, and longer than a look
			d.Type, d.Memory = "test", &libvirtxml.DomainMemory{Value: 1024}
			d.OS = &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm"}}
			d.Devices = nil // which the test driver knows not all of
			doc, _ := d.Marshal()
			dom, err := h.conn.DomainCreateXML(doc, 0)
			if err = errors.Join(err, unlock()); err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { dom.Destroy(); dom.Free() })
			names[i] = g.record.Cache
		})
	}
	all.Wait()
	slices.Sort(names)
	if once := slices.Compact(slices.Clone(names)); len(once) != machines {
		t.Errorf("%d machines got %v", machines, names)
	}
}

func TestPruneCaches(t *testing.T) {
	h, c := testHost(t), aCache(t, CacheDisk)
	used, idle, old := c.mustChoose(t, h), chosenCache{}, chosenCache{}
	machineWith(t, h, "one", used.name)
	idle = c.mustChoose(t, h)
	machineWith(t, h, "two", idle.name)()
	other := *c
	other.Key = anotherKey
	old = other.mustChoose(t, h)
	share := *c
	share.Mode = CacheShare
	shared := share.mustChoose(t, h)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(shared.path, "link")); err != nil {
		t.Fatal(err)
	}
	month := time.Now().Add(-30 * 24 * time.Hour)
	for _, path := range []string{used.path, old.path, filepath.Join(filepath.Dir(shared.path), ownerFile)} {
		if err := os.Chtimes(path, month, month); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(age time.Duration, dry bool) []string {
		t.Helper()
		pruned, err := PruneCaches(t.Context(), h, c.Dir, CachePruneOptions{UnusedSince: time.Now().Add(-age), DryRun: dry})
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
	unused := []string{old.name, shared.name}
	slices.Sort(unused)
	if got := prune(time.Hour, true); !slices.Equal(got, unused) {
		t.Errorf("would prune %v, want %v", got, unused)
	}
	if got := prune(time.Hour, false); !slices.Equal(got, unused) {
		t.Errorf("pruned %v, want %v", got, unused)
	}
	if got := prune(0, false); !slices.Equal(got, []string{idle.name}) {
		t.Errorf("pruned %v, want %v", got, idle.name)
	}
	if left, err := Caches(c.Dir); err != nil || len(left) != 1 || left[0].Name != used.name {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, gone := range []string{filepath.Dir(old.path), filepath.Dir(shared.path), filepath.Join(c.Dir, removedDir)} {
		if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	if pruned, err := PruneCaches(t.Context(), h, filepath.Join(c.Dir, "nowhere"), CachePruneOptions{}); err != nil || len(pruned) > 0 {
		t.Errorf("of nothing: %v, %v", pruned, err)
	}
}

// A share does not take a place that the image's domain has given away.
func TestShareAddress(t *testing.T) {
	zero, slot := uint(0), uint(0x10)
	d := &libvirtxml.Domain{
		OS: &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64"}},
		Devices: &libvirtxml.DomainDeviceList{Interfaces: []libvirtxml.DomainInterface{{
			Address: &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{Bus: &zero, Slot: &slot}},
		}}},
	}
	for want := uint(0x11); want <= 0x12; want++ {
		addCacheShare(d, "/share")
		if got := *d.Devices.Filesystems[len(d.Devices.Filesystems)-1].Address.PCI.Slot; got != want {
			t.Errorf("got slot %#x, want %#x", got, want)
		}
	}
}
