package record

import (
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt/virttest"
)

func TestRecordLivesInTheDomain(t *testing.T) {
	h := virttest.Open(t)
	record := Record{
		Job: "42", Project: `group/<"&'>`, Server: "https://gitlab.example.com", Image: "registry.example.com/vms/debian:12",
		Digest:  "sha256:0123",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Expires: time.Date(2026, 1, 2, 5, 4, 5, 0, time.UTC),
	}
	metadata, err := record.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	dom := virttest.Start(t, h, &libvirtxml.Domain{Name: "job", Metadata: metadata})
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
