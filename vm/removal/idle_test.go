package removal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/place"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// A bed is a host with idle machines, all of the same memory.
type bed struct {
	t  *testing.T
	h  *virt.Host
	at place.Place // of the job
}

const memory = 1 << 20 // of a machine of virttest

func newBed(t *testing.T) *bed {
	root := t.TempDir()
	b := &bed{t, virttest.OpenEmpty(t), place.Place{OverlayDir: filepath.Join(root, "clones"), JobDir: filepath.Join(root, "jobs", someMachine)}}
	if err := idle.Touch(b.at.Storage()); err != nil {
		t.Fatal(err)
	}
	return b
}

// machine starts a machine with files.
func (b *bed) machine(r record.Record) (name string) {
	b.t.Helper()
	name = idle.NewName()
	metadata, err := r.Metadata()
	if err != nil {
		b.t.Fatal(err)
	}
	virttest.Start(b.t, b.h, &libvirtxml.Domain{Name: name, Metadata: metadata})
	if err := os.MkdirAll(b.at.Of(name).JobDir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	return name
}

// offered starts a machine that jobs may take.
func (b *bed) offered() string {
	b.t.Helper()
	name := b.machine(record.Record{Idle: true, Expires: time.Now().Add(time.Hour)})
	if err := idle.Offer(b.at.Storage(), name); err != nil {
		b.t.Fatal(err)
	}
	return name
}

// left are the domains and files that are left of the machines, by name.
func (b *bed) left() (left []string) {
	b.t.Helper()
	machines, err := record.List(b.t.Context(), b.h)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range machines {
		left = append(left, m.Name)
	}
	entries, err := os.ReadDir(b.at.Storage())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".idle" && !slices.Contains(left, e.Name()) {
			left = append(left, e.Name())
		}
	}
	return left
}

func (b *bed) remove(want error) {
	b.t.Helper()
	if err := Remove(b.t.Context(), b.h, someMachine, b.at); !errors.Is(err, want) {
		b.t.Errorf("remove: %v, want %v", err, want)
	}
}

// Cleanup finds the machine that its job has taken by the link, or by the record alone, and
// also if prepare died before it wrote the record.
func TestRemoveOfATakenMachine(t *testing.T) {
	for name, test := range map[string]struct {
		record record.Record
		link   bool
		want   error
	}{
		"taken":                     {record.Record{Job: "4711", Machine: someMachine}, true, nil},
		"the link is lost":          {record.Record{Job: "4711", Machine: someMachine}, false, nil},
		"prepare died":              {record.Record{Idle: true}, true, nil},
		"the link leads to another": {record.Record{Job: "1", Machine: "sardine-0123abcd-1"}, true, errdefs.ErrNotOurs},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			other := b.offered()
			domain := b.machine(test.record)
			if test.link {
				if err := errors.Join(idle.Offer(b.at.Storage(), domain), idle.Take(b.at.Storage(), domain, someMachine)); err != nil {
					t.Fatal(err)
				}
			}
			b.remove(test.want)
			if left := b.left(); test.want == nil && !slices.Equal(left, []string{other}) || test.want != nil && !slices.Contains(left, domain) {
				t.Errorf("left are %q; the other idle machine is %s", left, other)
			}
			if test.want == nil {
				b.remove(nil) // again
			}
		})
	}
}

func TestEvict(t *testing.T) {
	b := newBed(t)
	first, second, third := b.offered(), b.offered(), b.offered()
	boots := b.machine(record.Record{Idle: true})
	taken := b.machine(record.Record{Job: "4711", Machine: someMachine})
	locked, err := dirlock.Try(b.at.Of(first).JobDir) // as a job that is taking it
	if err != nil || locked == nil {
		t.Fatal(locked, err)
	}
	evict := func(memory uint64, want ...string) {
		t.Helper()
		if err := Evict(t.Context(), b.h, b.at, memory); err != nil {
			t.Fatal(err)
		}
		left := b.left()
		slices.Sort(left)
		slices.Sort(want)
		if !slices.Equal(left, want) {
			t.Errorf("left are %q, want %q", left, want)
		}
	}
	evict(0, first, second, third, boots, taken)
	evict(1, first, second, third, taken) // the one that is not ready goes first
	evict(memory, first, third, taken)
	evict(10*memory, first, taken)
	if err := locked.Unlock(); err != nil {
		t.Fatal(err)
	}
	evict(10*memory, taken)
	if offered, err := idle.Offered(b.at.Storage()); err != nil || len(offered) != 0 {
		t.Errorf("offered are %q, %v", offered, err)
	}
}

// Many jobs that need room at once do not fail over each other, and none evicts too much.
func TestEvictAtOnce(t *testing.T) {
	b := newBed(t)
	for range 6 {
		b.offered()
	}
	done := make(chan error)
	for range 4 {
		go func() { done <- Evict(context.WithoutCancel(t.Context()), b.h, b.at, memory) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if left := b.left(); len(left) < 2 || len(left) > 5 {
		t.Errorf("%d machines are left of 6: %q", len(left), left)
	}
}

func TestSweepOfIdleMachines(t *testing.T) {
	b := newBed(t)
	name := b.offered()
	sweep := func(rule Rule, want bool) {
		t.Helper()
		if removed, err := Expired(t.Context(), b.h, name, b.at.Of(name), rule); removed != want || err != nil {
			t.Errorf("%+v: removed %t, %v", rule, removed, err)
		}
	}
	sweep(Rule{Now: time.Now()}, false)
	sweep(Rule{Now: time.Now(), Abandoned: true, DryRun: true}, true)
	sweep(Rule{Now: time.Now(), Abandoned: true}, true)
	if left := b.left(); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
	// A machine that a job has taken is not idle any more.
	name = b.machine(record.Record{Job: "4711", Machine: someMachine, Expires: time.Now().Add(time.Hour)})
	if err := errors.Join(idle.Offer(b.at.Storage(), name), idle.Take(b.at.Storage(), name, someMachine)); err != nil {
		t.Fatal(err)
	}
	sweep(Rule{Now: time.Now(), Abandoned: true}, false)
	if removed, err := Idle(t.Context(), b.h, name, b.at.Of(name)); removed || err != nil {
		t.Errorf("the keeper removed the machine of a job: %t, %v", removed, err)
	}
	sweep(Rule{Now: time.Now().Add(2 * time.Hour)}, true)
	if left := b.left(); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
}
