package sweep

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

var sweepNow = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// sweepBed is libvirt's in-memory driver and the directories of a driver.
type sweepBed struct {
	t    *testing.T
	conn *libvirt.Connect
	host *virt.Host
	dirs config.Dirs
}

func newSweepBed(t *testing.T) *sweepBed {
	t.Helper()
	host, err := virt.Open(t.Context(), "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := libvirt.NewConnect("test:///default") // the same driver: one process has one
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); conn.Close() })
	root := t.TempDir()
	return &sweepBed{t, conn, host, config.Dirs{Overlays: filepath.Join(root, "clones"), Jobs: filepath.Join(root, "jobs")}}
}

// machine starts a domain whose job expires then; one without is nobody's job.
func (b *sweepBed) machine(name string, expires time.Time) {
	b.t.Helper()
	dom, err := b.conn.DomainCreateXML(domainXML(name, expires), 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { dom.Destroy(); dom.Free() })
	b.files(name)
}

func domainXML(name string, expires time.Time) string {
	metadata := `<other:job xmlns:other="https://example.com/"><id>1</id></other:job>`
	if !expires.IsZero() {
		metadata = fmt.Sprintf(`<sardine:job xmlns:sardine=%q><id>1</id><created>2026-01-01T00:00:00Z</created><expires>%s</expires></sardine:job>`,
			record.Namespace, expires.Format(time.RFC3339))
	}
	return fmt.Sprintf("<domain type='test'><name>%s</name><metadata>%s</metadata>"+
		"<memory>1024</memory><os><type>hvm</type></os></domain>", name, metadata)
}

// files makes what a machine has on the host.
func (b *sweepBed) files(name string) {
	b.t.Helper()
	for _, dir := range []string{b.dirs.Jobs, b.dirs.Overlays} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			b.t.Fatal(err)
		}
	}
}

// left are the domains and the directories that are there, by name.
func (b *sweepBed) left() (domains, files []string) {
	b.t.Helper()
	list, err := b.conn.ListAllDomains(0)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, d := range list {
		if name, _ := d.GetName(); name != "test" { // the driver's own
			domains = append(domains, name)
		}
	}
	for _, dir := range []string{b.dirs.Jobs, b.dirs.Overlays} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			files = append(files, e.Name())
		}
	}
	slices.Sort(domains)
	slices.Sort(files)
	return domains, slices.Compact(files)
}

func (b *sweepBed) sweep(o Options) []string {
	b.t.Helper()
	o.Now = sweepNow
	swept, err := Run(b.t.Context(), b.host, b.dirs, o)
	if err != nil {
		b.t.Fatal(err)
	}
	var names []string
	for _, s := range swept {
		names = append(names, s.Machine)
	}
	slices.Sort(names)
	return names
}

func TestSweep(t *testing.T) {
	const (
		live, expired, foreign = "sardine-aaaaaaaa-1", "sardine-aaaaaaaa-2", "sardine-aaaaaaaa-3"
		gone, beingMade        = "sardine-aaaaaaaa-4", "sardine-aaaaaaaa-5"
		notOurs                = "keep-me"
	)
	everything := []string{notOurs, live, expired, foreign, gone, beingMade}
	for _, test := range []struct {
		name                  string
		o                     Options
		swept, domains, files []string
	}{
		{
			"as prepare does", Options{},
			[]string{expired, gone}, []string{live, foreign}, []string{notOurs, live, foreign, beingMade},
		},
		{
			"all", Options{All: true},
			[]string{live, expired, gone}, []string{foreign}, []string{notOurs, foreign, beingMade},
		},
		{
			"dry run", Options{All: true, DryRun: true},
			[]string{live, expired, gone}, []string{live, expired, foreign}, everything,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newSweepBed(t)
			b.machine(live, sweepNow.Add(time.Second))
			b.machine(expired, sweepNow.Add(-time.Second))
			b.machine(foreign, time.Time{}) // a look-alike
			b.files(gone)
			b.files(beingMade)
			b.files(notOurs)
			dir, err := os.Open(filepath.Join(b.dirs.Jobs, beingMade))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}

			swept := b.sweep(test.o)
			domains, files := b.left()
			for what, lists := range map[string][2][]string{
				"swept": {swept, test.swept}, "domains": {domains, test.domains}, "files": {files, test.files},
			} {
				want := slices.Sorted(slices.Values(lists[1]))
				if !slices.Equal(lists[0], want) {
					t.Errorf("%s: got %v, want %v", what, lists[0], want)
				}
			}
		})
	}
}

// A copy of a machine that somebody has defined carries the record of the job, and is no
// machine of a job all the same, whether it runs or not.
func TestSweepLeavesDefinedCopies(t *testing.T) {
	for state, runs := range map[string]bool{"off": false, "running": true} {
		t.Run(state, func(t *testing.T) {
			b := newSweepBed(t)
			const name = "sardine-aaaaaaaa-7"
			dom, err := b.conn.DomainDefineXML(domainXML(name, sweepNow.Add(-time.Hour)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { dom.Undefine(); dom.Free() })
			if runs {
				if err := dom.Create(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { dom.Destroy() })
			}
			if swept := b.sweep(Options{All: true}); len(swept) > 0 {
				t.Errorf("swept %q", swept)
			}
			if err := removal.Remove(t.Context(), b.host, name, vm.Place{OverlayDir: b.dirs.Overlays, JobDir: b.dirs.Jobs}); !errors.Is(err, errdefs.ErrNotOurs) {
				t.Errorf("remove: %v", err)
			}
			if domains, _ := b.left(); !slices.Equal(domains, []string{name}) {
				t.Errorf("there are %q", domains)
			}
			if machines, err := record.List(t.Context(), b.host); len(machines) > 0 || err != nil {
				t.Errorf("it counts as a machine: %v, %v", machines, err)
			}
		})
	}
}

// Overlays whose job directory is gone are nobody's, either.
func TestSweepFindsOverlaysAlone(t *testing.T) {
	b := newSweepBed(t)
	b.files("sardine-aaaaaaaa-9")
	if err := os.RemoveAll(b.dirs.Jobs); err != nil {
		t.Fatal(err)
	}
	if got := b.sweep(Options{}); !slices.Equal(got, []string{"sardine-aaaaaaaa-9"}) {
		t.Errorf("got %v", got)
	}
	if _, files := b.left(); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
}
