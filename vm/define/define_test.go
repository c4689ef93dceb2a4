package define

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// defined defines a domain of the test driver with the given elements.
func defined(t *testing.T, h *virt.Host, name, elements string) {
	t.Helper()
	doc := `<domain type="test"><name>` + name + `</name><memory>1024</memory><os><type arch="x86_64">hvm</type></os>` + elements + `</domain>`
	dom, err := h.Define(t.Context(), name, doc, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dom.Remove(context.Background())
		dom.Free()
	})
}

const capturedDevices = `
<metadata><b:image xmlns:b="` + originNamespace + `"><reference>r.example/x:1</reference><digest>sha256:aa</digest></b:image></metadata>
<devices>
  <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/srv/a/disk.qcow2"/><target dev="vda" bus="virtio"/></disk>
  <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/srv/b/disk.qcow2"/><target dev="vdb" bus="virtio"/></disk>
  <disk type="file" device="disk"><source file="/srv/b/disk-1.qcow2"/><target dev="vdc" bus="virtio"/></disk>
  <disk type="file" device="cdrom"><source file="/srv/seed.iso"/><target dev="sda" bus="sata"/><readonly/></disk>
  <disk type="file" device="cdrom"><target dev="sdb" bus="sata"/><readonly/></disk>
  <interface type="network"><mac address="52:54:00:11:22:33"/><source network="default"/><target dev="vnet7"/></interface>
  <serial type="file"><source path="/var/log/vm.log"/></serial>
  <graphics type="vnc" passwd="s3cret"/>
</devices>
<seclabel type="none" model="selinux"/>`

func TestCapture(t *testing.T) {
	h := virttest.Open(t)
	defined(t, h, "web", capturedDevices)
	captured, err := Capture(t.Context(), h, "web")
	if err != nil {
		t.Fatal(err)
	}
	want := []CapturedDisk{
		{"/srv/a/disk.qcow2", "disk.qcow2", "qcow2", false},
		{"/srv/b/disk.qcow2", "disk-1.qcow2", "qcow2", false},
		{"/srv/b/disk-1.qcow2", "disk-1-1.qcow2", "raw", false},
		{"/srv/seed.iso", "seed.iso", "raw", true},
	}
	if diff := cmp.Diff(want, captured.Disks); diff != "" {
		t.Error(diff)
	}
	if captured.Name != "web" || captured.Architecture != "amd64" {
		t.Errorf("captured: %+v", captured)
	}
	doc := string(captured.DomainXML)
	for _, must := range []string{"<name>web</name>", `file="disk-1-1.qcow2"`, "<mac/>", `network="default"`} {
		if !strings.Contains(doc, must) {
			t.Errorf("no %s in\n%s", must, doc)
		}
	}
	for _, mustNot := range []string{"uuid", "52:54", "/srv", "vnet7", "/var/log", "s3cret", "seclabel", originNamespace} {
		if strings.Contains(doc, mustNot) {
			t.Errorf("%s in\n%s", mustNot, doc)
		}
	}
	var layers []domainxml.Disk
	for _, d := range captured.Disks {
		layers = append(layers, domainxml.Disk{Name: d.Name, Format: d.Format})
	}
	real := strings.Replace(doc, `type="test"`, `type="kvm"`, 1)
	if _, err := domainxml.Rebuild([]byte(real), domainxml.Options{Disks: layers}); err != nil {
		t.Errorf("a job could not use it: %v", err)
	}
}

func TestCaptureRefuses(t *testing.T) {
	h := virttest.Open(t)
	disk := func(elements string) string { return "<devices>" + elements + "</devices>" }
	tests := map[string]struct {
		elements string
		text     string
	}{
		"no disk":   {"", "no disk"},
		"a block":   {disk(`<disk type="block" device="disk"><source dev="/dev/sdz"/><target dev="vda"/></disk>`), "disk vda is not a file"},
		"a network": {disk(`<disk type="network" device="disk"><source protocol="nbd" name="x"><host name="h"/></source><target dev="vda"/></disk>`), "disk vda is not a file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			defined(t, h, "bad", test.elements)
			if _, err := Capture(t.Context(), h, "bad"); err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v, want %q", err, test.text)
			}
		})
	}
	// The driver starts with a running domain.
	if _, err := Capture(t.Context(), h, "test"); !errors.Is(err, ErrRunning) {
		t.Errorf("a running domain: %v", err)
	}
	if _, err := Capture(t.Context(), h, "none"); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("no domain: %v", err)
	}
}

func TestList(t *testing.T) {
	h := virttest.Open(t)
	defined(t, h, "web", capturedDevices)
	defined(t, h, "other", "")
	bases, err := List(t.Context(), h)
	if err != nil || len(bases) != 1 || bases[0].Name != "web" || bases[0].Origin.Image != "r.example/x:1" || bases[0].Origin.Digest != "sha256:aa" {
		t.Errorf("bases: %+v, %v", bases, err)
	}
	// None of them counts as the machine of a job.
	if machines, err := record.List(t.Context(), h); err != nil || len(machines) != 0 {
		t.Errorf("machines: %v, %v", machines, err)
	}
}

func aSpec(t *testing.T, name string) Spec {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	content := make([]byte, 1<<20)
	copy(content, "\xfa\xeb\xfe")   // cli; jmp $
	copy(content[510:], "\x55\xaa") // the mark of a boot sector
	if err := os.WriteFile(path, content, 0o444); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name: name, Source: domain.Source{Disks: []disk.Disk{{Name: "disk.raw", Path: path, Format: "raw", VirtualSize: 1 << 20}}, Accel: domain.AccelTCG},
		Network: "default", Dir: filepath.Join(t.TempDir(), "vms", "web"), Origin: Origin{Image: "r.example/x:1", Digest: "sha256:aa"},
	}
}

// TestDefine lists the defined domain and captures it: its disk is an overlay on that of the
// image.
func TestDefine(t *testing.T) {
	h := virttest.Open(t)
	spec := aSpec(t, "imported")
	if _, err := Define(t.Context(), h, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if dom, err := h.Domain(t.Context(), "imported"); err == nil {
			dom.Remove(context.Background())
			dom.Free()
		}
	})
	bases, err := List(t.Context(), h)
	if err != nil || len(bases) != 1 || bases[0].Name != "imported" || bases[0].Origin.Digest != "sha256:aa" {
		t.Errorf("bases: %+v, %v", bases, err)
	}
	captured, err := Capture(t.Context(), h, "imported")
	if err != nil {
		t.Fatal(err)
	}
	want := []CapturedDisk{{Path: filepath.Join(spec.Dir, "disk.qcow2"), Name: "disk.qcow2", Format: "qcow2"}}
	if diff := cmp.Diff(want, captured.Disks); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(want[0].Path); err != nil {
		t.Error(err)
	}
}

// TestDefineFails: a domain that cannot be defined leaves no file.
func TestDefineFails(t *testing.T) {
	h := virttest.Open(t)
	spec := aSpec(t, "two\nlines")
	if _, err := Define(t.Context(), h, spec); err == nil {
		t.Error("defined a name of two lines")
	}
	defined(t, h, "taken", "")
	spec.Name = "taken"
	if _, err := Define(t.Context(), h, spec); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	spec.Name, spec.Disks[0].Path = "new", "/no/such/disk"
	spec.Disks[0].VirtualSize = 0
	if _, err := Define(t.Context(), h, spec); err == nil {
		t.Error("defined on a disk that is not there")
	}
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", spec.Dir, err)
	}
}
