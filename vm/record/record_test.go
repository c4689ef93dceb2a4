package record

import (
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// testHost is libvirt's own in-memory driver: real libvirt, no machines.
func testHost(t *testing.T) *virt.Host {
	t.Helper()
	h, err := virt.Open(t.Context(), "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func define(t *testing.T, h *virt.Host, d *libvirtxml.Domain) *virt.Domain {
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
	metadata, err := record.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	dom := define(t, h, &libvirtxml.Domain{Name: "job", Metadata: metadata})
	if got, err := Read(t.Context(), dom); err != nil || got != record {
		t.Errorf("from the domain's XML: got %+v, %v; want %+v", got, err, record)
	}
	record.Address, record.HostKey, record.User = "127.0.0.1:2222", "ssh-ed25519 AAAA", "ci"
	if err := record.Store(t.Context(), dom); err != nil {
		t.Fatal(err)
	}
	if got, err := List(t.Context(), h); err != nil || len(got) != 1 || got[0] != (InstanceInfo{"job", record}) {
		t.Errorf("after the update: got %+v, %v; want %+v", got, err, record)
	}
}
