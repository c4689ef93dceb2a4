package idle

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// offered returns the directory of jobs with one machine on offer.
func offered(t *testing.T) (jobs, domain string) {
	t.Helper()
	jobs, domain = t.TempDir(), NewName()
	if err := errors.Join(os.Mkdir(filepath.Join(jobs, domain), 0o700), Touch(jobs), Offer(jobs, domain)); err != nil {
		t.Fatal(err)
	}
	return jobs, domain
}

func TestOneJobTakesAMachine(t *testing.T) {
	jobs, domain := offered(t)
	var winners atomic.Int32
	var all sync.WaitGroup
	for n := range 16 {
		machine := "sardine-00000000-" + string(rune('a'+n))
		all.Go(func() {
			switch err := Take(jobs, domain, machine); {
			case err == nil:
				winners.Add(1)
				if Domain(jobs, machine) != domain {
					t.Errorf("%s leads to %s", machine, Domain(jobs, machine))
				}
			case !errors.Is(err, ErrTaken):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := winners.Load(); n != 1 {
		t.Errorf("%d jobs have the machine", n)
	}
}

func TestTakeReplacesNothing(t *testing.T) {
	jobs, domain := offered(t)
	if err := os.Mkdir(filepath.Join(jobs, "job"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Take(jobs, domain, "job"); err == nil || errors.Is(err, ErrTaken) {
		t.Errorf("the directory of a job was replaced: %v", err)
	}
	if names, err := Offered(jobs); err != nil || len(names) != 1 {
		t.Errorf("offered: %q, %v", names, err)
	}
}

// Links that an attacker or a mistake made lead nowhere.
func TestDomainOfForeignLinks(t *testing.T) {
	jobs := t.TempDir()
	for _, target := range []string{"/etc", "../x", "sardine-00000000-1", "sardine-idle-xyz", "sardine-idle-0123456789ab/.."} {
		link := filepath.Join(jobs, "job")
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		if got := Domain(jobs, "job"); got != "job" {
			t.Errorf("a link to %s: domain %s", target, got)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	if !IsName(NewName()) || IsName("sardine-idle-") {
		t.Error("IsName")
	}
}

func TestOldestOfferFirst(t *testing.T) {
	jobs, first := offered(t)
	second := NewName()
	if err := Offer(jobs, second); err != nil {
		t.Fatal(err)
	}
	// Two links of one tick of the kernel's clock have the same time.
	if err := unix.Lutimes(filepath.Join(jobs, offers, first), make([]unix.Timeval, 2)); err != nil {
		t.Fatal(err)
	}
	if names, err := Offered(jobs); err != nil || len(names) != 2 || names[0] != first {
		t.Errorf("%q, %v; want %q first", names, err, first)
	}
	if err := Withdraw(jobs, first); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Withdraw(jobs, first), Take(jobs, second, "job")); err != nil {
		t.Fatal(err)
	}
	if err := Take(jobs, first, "other"); !errors.Is(err, ErrTaken) {
		t.Errorf("a withdrawn machine: %v", err)
	}
}

func TestTidy(t *testing.T) {
	jobs, domain := offered(t)
	gone := NewName()
	if err := errors.Join(Take(jobs, domain, "job"), Offer(jobs, gone), os.Symlink(gone, filepath.Join(jobs, "lost")), os.Symlink("/nowhere", filepath.Join(jobs, "foreign"))); err != nil {
		t.Fatal(err)
	}
	if err := Tidy(jobs, true); err != nil || Domain(jobs, "lost") != gone {
		t.Errorf("a dry run: %v", err)
	}
	if err := Tidy(jobs, false); err != nil {
		t.Fatal(err)
	}
	names, err := Offered(jobs)
	if err != nil || len(names) != 0 || Domain(jobs, "lost") != "lost" || Domain(jobs, "job") != domain {
		t.Errorf("offered %q, %v; lost: %s; job: %s", names, err, Domain(jobs, "lost"), Domain(jobs, "job"))
	}
	if _, err := os.Readlink(filepath.Join(jobs, "foreign")); err != nil {
		t.Errorf("a link of another program: %v", err)
	}
	if err := Forget(jobs, "job", gone); err != nil || Domain(jobs, "job") != domain {
		t.Errorf("the link to another machine was removed: %v", err)
	}
	if err := Forget(jobs, "job", domain); err != nil || Domain(jobs, "job") != "job" {
		t.Errorf("the link is still there: %v", err)
	}
}

func TestAbandoned(t *testing.T) {
	jobs := t.TempDir()
	if Used(jobs) || !Abandoned(jobs, time.Now()) {
		t.Error("a host without idle machines")
	}
	if err := Touch(jobs); err != nil {
		t.Fatal(err)
	}
	if !Used(jobs) || Abandoned(jobs, time.Now()) || !Abandoned(jobs, time.Now().Add(abandonedAfter+time.Second)) {
		t.Error("after Touch")
	}
}
