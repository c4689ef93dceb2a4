package domainxml_test

import (
	"encoding/xml"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

var update = flag.Bool("update", false, "update the golden files")

// layers are the disks of every image in testdata.
var layers = []domainxml.Disk{
	{Name: "OpenCore.qcow2", Format: "qcow2"},
	{Name: "base.qcow2", Format: "qcow2"},
	{Name: "box.img", Format: "qcow2"},
	{Name: "data.img", Format: "raw"},
	{Name: "disk-1.qcow2", Format: "qcow2"},
	{Name: "disk.qcow2", Format: "qcow2"},
	{Name: "mac_hdd_ng.qcow2", Format: "qcow2"},
	{Name: "overlay.qcow2", Format: "qcow2"},
	{Name: "seed.iso", Format: "raw"},
	{Name: "tiny.qcow2", Format: "qcow2"},
}

// TestRebuild compares the results for domains of images that the Python tool exported (fixture),
// and for domains like those of virt-manager, virt-install, vagrant-libvirt and GNOME Boxes
// (realistic), with golden files.
func TestRebuild(t *testing.T) {
	for _, file := range documents(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".xml"), func(t *testing.T) {
			if strings.HasSuffix(file, "macos.xml") {
				t.Skip("refused: see TestTrusted")
			}
			result := rebuildFile(t, file, domainxml.Options{Disks: layers})
			golden(t, strings.TrimSuffix(file, ".xml")+".golden", result)
			again(t, result, domainxml.Options{Disks: layers})
		})
	}
}

func TestTrusted(t *testing.T) {
	const file = "testdata/realistic/macos.xml"
	_, err := domainxml.Rebuild(read(t, file), domainxml.Options{Disks: layers})
	wantRefused(t, err, "qemu:commandline")

	opts := domainxml.Options{Disks: layers, Trusted: true}
	result := rebuildFile(t, file, opts)
	golden(t, "testdata/realistic/macos.golden", result)
	again(t, result, opts)
}

// TestTrustedKeepsWhatItSays checks the documentation of Options.Trusted.
func TestTrustedKeepsWhatItSays(t *testing.T) {
	doc := domain{
		attrs: `xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0"`,
		top: `<memoryBacking><hugepages/></memoryBacking><iothreads>2</iothreads><numatune><memory nodeset="0"/></numatune>
			<cputune><shares>2048</shares></cputune><sysinfo type="fwcfg"><entry name="opt/x" file="/srv/x"/></sysinfo>
			<launchSecurity type="s390-pv"/>`,
		os: `<kernel>/srv/vmlinuz</kernel><cmdline>quiet</cmdline><smbios mode="host"/>`,
		devices: `<emulator>/opt/qemu</emulator><hostdev mode="subsystem" type="usb"><source><vendor id="0x1"/><product id="0x2"/></source></hostdev>
			<filesystem type="mount"><source dir="/srv/cache"/><target dir="cache"/></filesystem>
			<vsock model="virtio"><cid auto="yes"/></vsock><shmem name="s"><model type="ivshmem-plain"/><size unit="M">4</size></shmem>
			<interface type="network"><source network="admin"/><mac address="52:54:00:00:00:01"/><model type="virtio"/><mtu size="9000"/><driver queues="2"/><alias name="ua-nic"/></interface>
			<graphics type="vnc" listen="0.0.0.0"/><serial type="file"><source path="/srv/log"/></serial>`,
		bottom: `<seclabel type="none"/><qemu:commandline><qemu:arg value="-S"/></qemu:commandline>
			<qemu:override><qemu:device alias="ua-nic"><qemu:frontend><qemu:property name="x" type="bool" value="true"/></qemu:frontend></qemu:device></qemu:override>`,
	}.String()
	result, err := domainxml.Rebuild([]byte(doc), domainxml.Options{Disks: layers, Trusted: true})
	if err != nil {
		t.Fatal(err)
	}
	out := marshal(t, result.Domain)
	for _, kept := range []string{
		"hugepages", "<iothreads>2", "<shares>2048", `nodeset="0"`, `file="/srv/x"`, "/srv/vmlinuz", "/opt/qemu", "hostdev",
		"/srv/cache", "vsock", "shmem", `mtu size="9000"`, `queues="2"`, "ua-nic", `value="-S"`, `name="x"`, "s390-pv", `mode="host"`,
	} {
		if !strings.Contains(out, kept) {
			t.Errorf("a trusted domain lost %s", kept)
		}
	}
	for _, gone := range []string{"52:54:00:00:00:01", `network="admin"`, "graphics", "/srv/log", "seclabel", "<name>", "<uuid>"} {
		if strings.Contains(out, gone) {
			t.Errorf("a trusted domain still has %s, which is the caller's", gone)
		}
	}
}

// TestTrustedDisksAreLayers: also in trusted documents, disks must be layers. Every job would
// write to another file.
func TestTrustedDisksAreLayers(t *testing.T) {
	doc := domain{devices: `<disk type="file"><source file="/srv/shared.qcow2"/><target dev="vdb"/></disk>`}.String()
	_, err := domainxml.Rebuild([]byte(doc), domainxml.Options{Disks: layers, Trusted: true})
	wantRefused(t, err, "devices/disk[2]/source")
}

// TestAddressesSurvive: each device keeps its address. The names of network cards in the guest
// depend on it.
func TestAddressesSurvive(t *testing.T) {
	in := &libvirtxml.Domain{}
	if err := in.Unmarshal(string(read(t, "testdata/realistic/linux-bios.xml"))); err != nil {
		t.Fatal(err)
	}
	out := rebuildFile(t, "testdata/realistic/linux-bios.xml", domainxml.Options{Disks: layers}).Domain
	names := cmpopts.IgnoreTypes(xml.Name{})
	if diff := cmp.Diff(in.Devices.Controllers, out.Devices.Controllers, names); diff != "" {
		t.Errorf("controllers changed (-image +rebuilt):\n%s", diff)
	}
	if diff := cmp.Diff(in.Devices.Interfaces[0].Address, out.Devices.Interfaces[0].Address); diff != "" {
		t.Errorf("the network card moved (-image +rebuilt):\n%s", diff)
	}
	if diff := cmp.Diff(in.Devices.Disks[0].Address, out.Devices.Disks[0].Address); diff != "" {
		t.Errorf("the disk moved (-image +rebuilt):\n%s", diff)
	}
}

func TestFormatIsTheCallers(t *testing.T) {
	doc := domain{disk: `<disk type="file"><driver name="qemu" type="raw"/><source file="disk.qcow2"/><target dev="vda"/></disk>`}.String()
	result, err := domainxml.Rebuild([]byte(doc), domainxml.Options{Disks: layers})
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Domain.Devices.Disks[0].Driver.Type; got != "qcow2" {
		t.Errorf("the disk is opened as %s, want qcow2 as its header says", got)
	}
	if len(result.Dropped) != 1 || !strings.Contains(result.Dropped[0], "driver/@type") {
		t.Errorf("Dropped = %q, want the format", result.Dropped)
	}
}

func TestLayersAreBaseNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/etc/passwd", "a/b", "a\nb"} {
		_, err := domainxml.Rebuild([]byte(domain{}.String()), domainxml.Options{Disks: []domainxml.Disk{{Name: name, Format: "raw"}}})
		wantRefused(t, err, "")
	}
	_, err := domainxml.Rebuild([]byte(domain{}.String()), domainxml.Options{Disks: []domainxml.Disk{{Name: "x", Format: "vmdk"}}})
	wantRefused(t, err, "")
}

// documents are the domain XMLs in testdata.
func documents(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*/*.xml")
	if err != nil || len(files) < 13 {
		t.Fatalf("testdata has %d documents: %v", len(files), err)
	}
	return files
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rebuildFile(t testing.TB, file string, opts domainxml.Options) *domainxml.Result {
	t.Helper()
	result, err := domainxml.Rebuild(read(t, file), opts)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return result
}

func marshal(t testing.TB, d *libvirtxml.Domain) string {
	t.Helper()
	doc, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// golden compares a result with a file: the domain, then what was dropped.
func golden(t *testing.T, file string, result *domainxml.Result) {
	t.Helper()
	got := marshal(t, result.Domain) + "\n<!-- dropped:\n" + strings.Join(result.Dropped, "\n") + "\n-->\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, file)), got); diff != "" {
		t.Errorf("%s (-golden +rebuilt):\n%s", file, diff)
	}
}

// again rebuilds a result, which must not change it.
func again(t testing.TB, result *domainxml.Result, opts domainxml.Options) {
	t.Helper()
	first := marshal(t, result.Domain)
	second, err := domainxml.Rebuild([]byte(first), opts)
	if err != nil {
		t.Fatalf("the result is refused itself: %v\n%s", err, first)
	}
	if diff := cmp.Diff(first, marshal(t, second.Domain)); diff != "" {
		t.Errorf("rebuilding the result changes it (-first +second):\n%s", diff)
	}
	if len(second.Dropped) > 0 {
		t.Errorf("rebuilding the result drops %q", second.Dropped)
	}
}

func wantRefused(t testing.TB, err error, element string) {
	t.Helper()
	var refused *domainxml.RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("error is %v, want a refusal of %q", err, element)
	}
	if refused.Element != element {
		t.Errorf("refused %q (%v), want %q", refused.Element, err, element)
	}
	if !strings.Contains(err.Error(), element) {
		t.Errorf("the error %q does not name %q", err, element)
	}
}
