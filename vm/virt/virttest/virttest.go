// Package virttest runs tests against libvirt's in-memory driver (test:///default): the real
// library, without a daemon and without machines.
package virttest

import (
	"os"
	"path/filepath"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// Open connects to the in-memory driver. All tests of a process share its domains.
func Open(t testing.TB) *virt.Host {
	t.Helper()
	return open(t, "test:///default")
}

// OpenEmpty connects to a new in-memory driver, which has no domains.
func OpenEmpty(t testing.TB) *virt.Host {
	t.Helper()
	node := filepath.Join(t.TempDir(), "node.xml")
	if err := os.WriteFile(node, []byte("<node/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, "test://"+node)
}

func open(t testing.TB, uri string) *virt.Host {
	t.Helper()
	h, err := virt.Open(t.Context(), uri)
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
