package vm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// A machine that cannot be used is removed, and its job is free to take another one.
func TestTakeDropsWhatItCannotUse(t *testing.T) {
	t.Parallel()
	h := virttest.OpenEmpty(t)
	root := t.TempDir()
	claim := Claim{
		Domain: idle.NewName(), Name: someMachine, Record: record.Record{Job: "4711"},
		Place: Place{OverlayDir: filepath.Join(root, "clones"), JobDir: filepath.Join(root, "jobs", someMachine)},
	}
	at := claim.Of(claim.Domain)
	if _, err := claim.Take(t.Context(), h); !errors.Is(err, idle.ErrTaken) {
		t.Errorf("a machine that never was: %v", err)
	}
	// Nothing answers at its address.
	metadata, err := record.Record{Idle: true, Address: "127.0.0.1:9", HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPQ8kaBvhOLcl4p9xpX0P1L/FYWzmtOVJmv2EfEHHLcB"}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: claim.Domain, Metadata: metadata})
	err = errors.Join(os.MkdirAll(at.JobDir, 0o700), idle.Touch(at.Storage()), idle.Offer(at.Storage(), claim.Domain),
		idle.State{Kind: "x", Made: time.Now()}.Save(at.Storage(), claim.Domain), guestssh.SaveLogin(at.JobDir, guestssh.Login{User: "ci", Password: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	locked, err := dirlock.Try(at.JobDir)
	if err != nil || locked == nil {
		t.Fatal(locked, err)
	}
	if _, err := claim.Take(t.Context(), h); !errors.Is(err, idle.ErrTaken) {
		t.Errorf("a machine that another process removes: %v", err)
	}
	if err := locked.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := claim.Take(t.Context(), h); !errors.Is(err, guestssh.ErrLost) {
		t.Errorf("a machine that does not answer: %v", err)
	}
	if _, err := h.Domain(t.Context(), claim.Domain); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("its domain: %v", err)
	}
	if idle.Domain(at.Storage(), someMachine) != someMachine {
		t.Error("the job's link is still there")
	}
	if _, err := os.Stat(at.JobDir); err == nil {
		t.Error("its files are still there")
	}
}

// A later stage gets the machine that its job has taken, and no other.
func TestFindOfATakenMachine(t *testing.T) {
	h := virttest.OpenEmpty(t)
	jobs, domain := filepath.Join(t.TempDir(), "jobs"), idle.NewName()
	metadata, err := record.Record{Job: "4711", Machine: someMachine}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	virttest.Start(t, h, &libvirtxml.Domain{Name: domain, Metadata: metadata})
	const other = "sardine-0123abcd-1"
	err = errors.Join(os.MkdirAll(filepath.Join(jobs, domain), 0o700), idle.Touch(jobs), os.Symlink(domain, filepath.Join(jobs, other)))
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(t.Context(), h, someMachine, filepath.Join(jobs, someMachine)) // by the record
	if err != nil || found.Name() != domain || found.JobDir() != filepath.Join(jobs, domain) {
		t.Errorf("found %+v, %v", found, err)
	}
	if _, err := Find(t.Context(), h, other, filepath.Join(jobs, other)); !errors.Is(err, errdefs.ErrNotOurs) {
		t.Errorf("the machine of another job: %v", err)
	}
	if _, err := Find(t.Context(), h, "sardine-0123abcd-2", filepath.Join(jobs, "sardine-0123abcd-2")); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("a job without a machine: %v", err)
	}
}
