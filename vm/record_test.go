package vm

import (
	"errors"
	"os"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// testHost is libvirt's own in-memory driver: real libvirt, no machines.
func testHost(t *testing.T) *Host {
	t.Helper()
	h, err := Open(t.Context(), "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func define(t *testing.T, h *Host, d *libvirtxml.Domain) *virt.Domain {
	t.Helper()
	d.Type = "test"
	d.Memory = &libvirtxml.DomainMemory{Value: 1024}
	d.OS = &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm"}}
	doc, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	dom, err := h.Start(t.Context(), d.Name, doc)
	if err != nil {
		t.Fatal(err)
	}
	return dom
}

func TestRecordLivesInTheDomain(t *testing.T) {
	h := testHost(t)
	record := Record{
		Job: "42", Project: `group/<"&'>`, Server: "https://gitlab.example.com", Image: "registry.example.com/vms/debian:12",
		Digest:  "sha256:0123",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Expires: time.Date(2026, 1, 2, 5, 4, 5, 0, time.UTC),
	}
	metadata, err := record.metadata()
	if err != nil {
		t.Fatal(err)
	}
	dom := define(t, h, &libvirtxml.Domain{Name: "job", Metadata: metadata})
	if got, err := readRecord(t.Context(), dom); err != nil || got != record {
		t.Errorf("from the domain's XML: got %+v, %v; want %+v", got, err, record)
	}
	record.Address, record.HostKey, record.User = "127.0.0.1:2222", "ssh-ed25519 AAAA", "ci"
	if err := record.store(t.Context(), dom); err != nil {
		t.Fatal(err)
	}
	guest, err := Find(t.Context(), h, "job", t.TempDir())
	if err != nil || guest.Record() != record {
		t.Errorf("after the update: got %+v, %v; want %+v", guest, err, record)
	}
}

func TestRemoveLeavesOtherDomainsAlone(t *testing.T) {
	h := testHost(t)
	define(t, h, &libvirtxml.Domain{Name: "sardine-00000000-1"})
	clones, job := t.TempDir(), t.TempDir()
	if err := Remove(t.Context(), h, "sardine-00000000-1", clones, job); !errors.Is(err, ErrNotOurs) {
		t.Errorf("got %v, want %v", err, ErrNotOurs)
	}
	if _, err := h.Domain(t.Context(), "sardine-00000000-1"); err != nil {
		t.Errorf("a foreign domain is gone: %v", err)
	}
	if _, err := os.Stat(job); err != nil {
		t.Errorf("its files were touched: %v", err)
	}
}

func TestRemoveIsIdempotent(t *testing.T) {
	h := testHost(t)
	metadata, err := Record{Job: "7"}.metadata()
	if err != nil {
		t.Fatal(err)
	}
	define(t, h, &libvirtxml.Domain{Name: "ours", Metadata: metadata})
	clones, job := t.TempDir(), t.TempDir()
	for range 3 {
		if err := Remove(t.Context(), h, "ours", clones, job); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Domain(t.Context(), "ours"); !errors.Is(err, virt.ErrNoDomain) {
		t.Errorf("the domain is still there: %v", err)
	}
	if _, err := os.Stat(job); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is still there: %v", err)
	}
}

func TestFindKnowsWhatIsNotOurs(t *testing.T) {
	h := testHost(t)
	define(t, h, &libvirtxml.Domain{Name: "foreign"})
	for name, want := range map[string]error{"foreign": ErrNotOurs, "nobody": virt.ErrNoDomain} {
		if _, err := Find(t.Context(), h, name, t.TempDir()); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	_, err := Open(t.Context(), "qemu+unix:///session?socket=/nonexistent/socket")
	if err == nil {
		t.Fatal("connected to nothing")
	}
	t.Log(err)
}
