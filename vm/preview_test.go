package vm

import (
	"strings"
	"testing"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
)

func TestPreview(t *testing.T) {
	spec := Spec{
		Name:  "sardine-1",
		Size:  domain.Size{CPUs: 3, Memory: 1 << 30},
		Place: Place{OverlayDir: "/clones", JobDir: "/jobs/sardine-1"},
		Source: domain.Source{
			Disks:     []disk.Disk{{Name: "base.qcow2", Path: "/i/base.qcow2", Format: "qcow2"}, {Name: "top.qcow2", Path: "/i/top.qcow2", Format: "qcow2", Backing: "base.qcow2"}},
			DomainXML: []byte(`<domain type="kvm"><name>x</name><memory>4096</memory><os><type arch="x86_64">hvm</type></os><devices><disk type="file"><source file="top.qcow2"/><target dev="vda"/></disk><hostdev mode="subsystem" type="usb"/></devices></domain>`)},
	}
	doc, dropped, err := Preview(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"<name>sardine-1</name>", `file="/clones/sardine-1/top.qcow2"`, `file="/i/base.qcow2"`, ">3</vcpu>", ">1048576</memory>"} {
		if !strings.Contains(doc, must) {
			t.Errorf("no %s in\n%s", must, doc)
		}
	}
	if len(dropped) == 0 || !strings.Contains(strings.Join(dropped, " "), "hostdev") {
		t.Errorf("dropped: %v", dropped)
	}
}
