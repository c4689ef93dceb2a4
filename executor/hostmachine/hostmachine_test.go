package hostmachine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// What no image can be made of is not tried again; a libvirt that does not answer is.
func TestFrom(t *testing.T) {
	h := virttest.Open(t)
	for name, elements := range map[string]string{
		"fit":      `<disk type="file"><driver type="qcow2"/><source file="/vms/a.qcow2"/><target dev="vda" bus="virtio"/></disk>`,
		"diskless": "",
		"block":    `<disk type="block"><source dev="/dev/sdb"/><target dev="vda" bus="virtio"/></disk>`,
	} {
		doc := `<domain type="test"><name>` + name + `</name><memory>1024</memory><os><type arch="x86_64">hvm</type></os><devices>` + elements + `</devices></domain>`
		dom, err := h.Define(t.Context(), name, doc, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dom.Remove(context.WithoutCancel(t.Context())); dom.Free() })
	}
	machines := From(func(ctx context.Context) (*virt.Host, error) { return virt.Open(ctx, h.URI()) })
	m, err := machines(t.Context(), "fit")
	if err != nil || m.Architecture != "amd64" || len(m.Disks) != 1 || m.Disks[0] != (oci.MachineDisk{Path: "/vms/a.qcow2", Name: "a.qcow2", Format: "qcow2"}) {
		t.Errorf("%+v, %v", m, err)
	}
	for name, want := range map[string]struct {
		err  error
		text string
	}{
		"none": {oci.ErrNotFound, "list --all"}, "test": {oci.ErrFormat, "shut it down first"},
		"diskless": {oci.ErrFormat, "it has no disk"}, "block": {oci.ErrFormat, "disk vda is not a file"},
	} {
		if _, err := machines(t.Context(), name); !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	down := From(func(context.Context) (*virt.Host, error) { return nil, errors.New("libvirt is down") })
	if _, err := down(t.Context(), "fit"); err == nil || oci.IsPermanent(err) {
		t.Errorf("a libvirt that is down: %v", err)
	}
}
