// Package virttest runs tests against libvirt's in-memory driver (test:///default): it is
// the real library, without a daemon and without machines.
package virttest

import (
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// Open connects to the in-memory driver.
func Open(t testing.TB) *virt.Host {
	t.Helper()
	h, err := virt.Open(t.Context(), "test:///default")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// Start starts d as a transient domain of the in-memory driver.
func Start(t testing.TB, h *virt.Host, d *libvirtxml.Domain) *virt.Domain {
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
