package define

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/qcow2/qcow2test"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// A sourceDomain is a domain to clone. Empty fields have ordinary defaults.
type sourceDomain struct {
	name    string
	disks   string
	nics    string
	devices string
	top     string // below <domain>
	os      string
}

func (s sourceDomain) define(t *testing.T, h *virt.Host) {
	t.Helper()
	if s.os == "" {
		s.os = `<os><type arch='x86_64'>hvm</type></os>`
	}
	doc := fmt.Sprintf(`<domain type='test'>
<name>%s</name><memory unit='MiB'>64</memory>%s%s
<devices>%s%s%s</devices></domain>`, s.name, s.os, s.top, s.disks, s.nics, s.devices)
	dom, err := h.Define(t.Context(), s.name, doc, false)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	t.Cleanup(func() { dom.Free() })
}

func diskXML(path, format, target string) string {
	return fmt.Sprintf(`<disk type='file' device='disk'><driver name='qemu' type='%s' cache='none' io='native'/>
<source file='%s'/><target dev='%s' bus='virtio'/></disk>`, format, path, target)
}

// web defines a source with one disk and one NIC, in a new directory.
func web(t *testing.T, h *virt.Host) (dir string) {
	t.Helper()
	dir = t.TempDir()
	disk := filepath.Join(dir, "web.qcow2")
	qcow2test.Create(t, disk, 1<<30)
	sourceDomain{name: "web", disks: diskXML(disk, "qcow2", "vda"),
		nics: `<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/></interface>`}.define(t, h)
	return dir
}

func domainXML(t *testing.T, h *virt.Host, name string) *libvirtxml.Domain {
	t.Helper()
	dom, err := h.Domain(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	doc, err := dom.InactiveXML(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		t.Fatal(err)
	}
	return d
}

// contents lists the files in a directory.
func contents(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestCloneStartModes(t *testing.T) {
	for _, test := range []struct {
		mode               StartMode
		defined, active    bool
		files              []string
		cache, io, discard string
	}{
		{CloneDefine, true, false, []string{"web.qcow2"}, "none", "native", ""},
		{"", true, false, []string{"web.qcow2"}, "none", "native", ""},
		{ClonePersistent, true, true, []string{"web.qcow2"}, "none", "native", ""},
		{CloneEphemeral, false, true, nil, "unsafe", "", "unmap"},
	} {
		t.Run("mode "+string(test.mode), func(t *testing.T) {
			h := virttest.OpenEmpty(t)
			source := web(t, h)
			out := filepath.Join(t.TempDir(), "new", "dir")
			clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Start: test.mode, Dir: out})
			if err != nil {
				t.Fatal(err)
			}
			if clone.Name != "web-clone" {
				t.Errorf("it is called %s", clone.Name)
			}
			dom, err := h.Domain(t.Context(), clone.Name)
			if err != nil {
				t.Fatal(err)
			}
			defer dom.Free()
			defined, _ := dom.IsPersistent(t.Context())
			active, _ := dom.IsActive(t.Context())
			if defined != test.defined || active != test.active {
				t.Errorf("defined %v, active %v; want %v, %v", defined, active, test.defined, test.active)
			}
			if got := contents(t, out); !slices.Equal(got, test.files) {
				t.Errorf("files %q, want %q", got, test.files)
			}
			before, after := domainXML(t, h, "web"), domainXML(t, h, clone.Name)
			if after.UUID == before.UUID {
				t.Error("it has the UUID of its source")
			}
			if mac := after.Devices.Interfaces[0].MAC.Address; mac == before.Devices.Interfaces[0].MAC.Address || !strings.HasPrefix(mac, "52:54:00:") {
				t.Errorf("its MAC address is %s", mac)
			}
			disk := after.Devices.Disks[0]
			if disk.Source.File.File != filepath.Join(out, "web.qcow2") || disk.Driver.Type != "qcow2" {
				t.Errorf("its disk: %+v, %+v", disk.Source.File, disk.Driver)
			}
			if d := disk.Driver; d.Cache != test.cache || d.IO != test.io || d.Discard != test.discard {
				t.Errorf("its disk's driver: %+v", d)
			}
			if test.files != nil {
				if got := qcow2test.Header(t, filepath.Join(out, "web.qcow2")); got.BackingFile != filepath.Join(source, "web.qcow2") || got.VirtualSize != 1<<30 {
					t.Errorf("the overlay: %+v", got)
				}
			}
		})
	}
}

func TestClonePrintMakesNothing(t *testing.T) {
	h := virttest.OpenEmpty(t)
	web(t, h)
	out := filepath.Join(t.TempDir(), "out")
	clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Start: ClonePrint, Dir: out, MAC: "52:54:00:AA:BB:CC"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
	if _, err := h.Domain(t.Context(), "web-clone"); !errors.Is(err, errdefs.ErrNoDomain) {
		t.Errorf("the domain was made: %v", err)
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(clone.XML); err != nil {
		t.Fatal(err)
	}
	if d.Name != "web-clone" || d.UUID == "" || d.Devices.Interfaces[0].MAC.Address != "52:54:00:aa:bb:cc" ||
		d.Devices.Disks[0].Source.File.File != filepath.Join(out, "web.qcow2") {
		t.Errorf("printed:\n%s", clone.XML)
	}
}

func TestCloneNames(t *testing.T) {
	h := virttest.OpenEmpty(t)
	web(t, h)
	out := t.TempDir()
	for _, want := range []string{"web-clone", "web-clone-1", "web-clone-2"} {
		clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Dir: out})
		if err != nil || clone.Name != want {
			t.Fatalf("got %+v, %v; want %s", clone, err, want)
		}
	}
	if got := contents(t, out); !slices.Equal(got, []string{"web-1.qcow2", "web-2.qcow2", "web.qcow2"}) {
		t.Errorf("files: %q", got)
	}
	if _, err := Clone(t.Context(), h, CloneOptions{Source: "web", Target: "web-clone-1", Dir: out}); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	if _, err := Clone(t.Context(), h, CloneOptions{Source: "web", Target: "web-clone-1", Start: ClonePrint, Dir: out}); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("print with a name that is taken: %v", err)
	}
	if clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Target: "mine", Dir: out}); err != nil || clone.Name != "mine" {
		t.Errorf("a name of its own: %+v, %v", clone, err)
	}
}

func TestCloneAtOnce(t *testing.T) {
	h := virttest.OpenEmpty(t)
	web(t, h)
	out := t.TempDir()
	const clones = 8
	names := make([]string, clones)
	var all sync.WaitGroup
	for i := range clones {
		all.Go(func() {
			clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Dir: out})
			if err != nil {
				t.Error(err)
				return
			}
			names[i] = clone.Name
		})
	}
	all.Wait()
	slices.Sort(names)
	if got := slices.Compact(slices.Clone(names)); len(got) != clones {
		t.Errorf("names: %q", names)
	}
	if got := contents(t, out); len(got) != clones {
		t.Errorf("files: %q", got)
	}
	macs := map[string]bool{}
	for _, name := range names {
		macs[domainXML(t, h, name).Devices.Interfaces[0].MAC.Address] = true
	}
	if len(macs) != clones {
		t.Errorf("%d MAC addresses for %d clones", len(macs), clones)
	}
}

// Two disks with the same name, a disk in two chains, a shared CD-ROM, an empty drive and a
// read-only disk.
func TestCloneSeveralDisks(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir, out := t.TempDir(), t.TempDir()
	path := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, sub := range []string{"a", "b"} {
		if err := os.Mkdir(path(sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	qcow2test.Create(t, path("base.qcow2"), 3<<20)
	if _, err := disk.CloneQCOW2(t.Context(), disk.BackingFile{Path: path("base.qcow2"), Format: "qcow2"}, path("a", "disk.qcow2"), 0); err != nil {
		t.Fatal(err)
	}
	qcow2test.Create(t, path("b", "disk.qcow2"), 2<<20)
	for name, size := range map[string]int64{"data.img": 5 << 20, "shared.img": 1 << 20, "tools.iso": 1 << 20} {
		if err := os.WriteFile(path(name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path(name), size); err != nil {
			t.Fatal(err)
		}
	}
	sourceDomain{name: "big", disks: diskXML(path("a", "disk.qcow2"), "qcow2", "vda") +
		diskXML(path("b", "disk.qcow2"), "qcow2", "vdb") +
		diskXML(path("data.img"), "raw", "vdc") +
		`<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='` + path("shared.img") + `'/><target dev='vdd' bus='virtio'/><readonly/></disk>` +
		`<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='` + path("tools.iso") + `'/><target dev='sda' bus='sata'/><readonly/></disk>` +
		`<disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>`}.define(t, h)
	for _, start := range []StartMode{ClonePrint, CloneDefine} {
		t.Run(string(start), func(t *testing.T) {
			clone, err := Clone(t.Context(), h, CloneOptions{Source: "big", Start: start, Dir: out, OmitBackingStore: domain.OmitNo})
			if err != nil {
				t.Fatal(err)
			}
			d := &libvirtxml.Domain{}
			if err := d.Unmarshal(clone.XML); err != nil {
				t.Fatal(err)
			}
			for i, want := range []string{
				filepath.Join(out, "disk.qcow2"), filepath.Join(out, "disk-1.qcow2"), filepath.Join(out, "data.qcow2"),
				path("shared.img"), path("tools.iso"), "",
			} {
				if got := disk.SourcePath(&d.Devices.Disks[i]); got != want {
					t.Errorf("disk %d is %q, want %q", i, got, want)
				}
			}
			var chain []string
			for b := d.Devices.Disks[0].BackingStore; b != nil && b.Source.File != nil; b = b.BackingStore {
				chain = append(chain, b.Source.File.File+" "+b.Format.Type)
			}
			if want := []string{path("a", "disk.qcow2") + " qcow2", path("base.qcow2") + " qcow2"}; !slices.Equal(chain, want) {
				t.Errorf("chain %q, want %q", chain, want)
			}
			if b := d.Devices.Disks[2].BackingStore; b == nil || b.Format == nil || b.Format.Type != "raw" {
				t.Errorf("the chain of the raw disk: %+v\n%s", b, clone.XML)
			}
		})
	}
	if got := qcow2test.Header(t, filepath.Join(out, "data.qcow2")); got.VirtualSize != 5<<20 || got.BackingFormat != "raw" {
		t.Errorf("the overlay on the raw disk: %+v", got)
	}
}

func TestCloneBackingStore(t *testing.T) {
	h := virttest.OpenEmpty(t)
	web(t, h)
	for choice, want := range map[string]bool{
		domain.OmitYes: false, domain.OmitNo: true,
		domain.OmitAuto: h.Version() >= 9_001_000, "": h.Version() >= 9_001_000,
	} {
		clone, err := Clone(t.Context(), h, CloneOptions{Source: "web", Start: ClonePrint, Dir: t.TempDir(), OmitBackingStore: choice})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(clone.XML, "<backingStore"); got != want {
			t.Errorf("omit %q: backing store written: %v, want %v", choice, got, want)
		}
	}
}

// UEFI variables are copied, or libvirt creates them at a new path.
func TestCloneNVRAM(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir, out := t.TempDir(), t.TempDir()
	vars := filepath.Join(dir, "vars.fd")
	if err := os.WriteFile(vars, []byte("boot order"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, nvram := range map[string]string{
		"path": `<nvram>` + vars + `</nvram>`, "template": `<nvram template='/usr/share/OVMF/OVMF_VARS.fd'>` + vars + `-none</nvram>`,
	} {
		sourceDomain{name: name, os: `<os><type arch='x86_64'>hvm</type>
<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>` + nvram + `</os>`}.define(t, h)
		clone, err := Clone(t.Context(), h, CloneOptions{Source: name, Dir: out})
		if err != nil {
			t.Fatal(err)
		}
		own := filepath.Join(out, name+"-clone_VARS.fd")
		got := domainXML(t, h, clone.Name).OS.NVRam
		if got.NVRam != own || !slices.Contains(clone.Files, own) {
			t.Errorf("%s: got %+v, want %s", name, got, own)
		}
		text, err := os.ReadFile(own)
		if name == "path" && (err != nil || string(text) != "boot order") {
			t.Errorf("the copy: %q, %v", text, err)
		}
		if name == "template" && (!errors.Is(err, os.ErrNotExist) || got.Template == "") {
			t.Errorf("with a template: %q, %v, %+v", text, err, got)
		}
	}
}

// TestMakeUnique clones a domain with everything that only one machine can have.
func TestMakeUnique(t *testing.T) {
	h := virttest.OpenEmpty(t)
	sourceDomain{name: "rich",
		top: `<genid>b8f2a5c0-5f3a-4f3c-9a6e-000000000001</genid>
<sysinfo type='smbios'><system><entry name='serial'>42</entry></system></sysinfo>`,
		nics: `<interface type='bridge'><source bridge='br0'/><target dev='mytap0'/></interface>
<interface type='bridge'><source bridge='br0'/><virtualport type='openvswitch'><parameters interfaceid='09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f'/></virtualport></interface>`,
		devices: `<serial type='file'><source path='/srv/canary-serial.log'/><target port='0'/></serial>
<serial type='unix'><source mode='bind' path='/srv/canary-serial.sock'/><target port='1'/></serial>
<serial type='pty'><log file='/srv/canary-log'/><target port='2'/></serial>
<serial type='tcp'><source mode='connect' host='127.0.0.1' service='2445'/><protocol type='raw'/><target port='3'/></serial>
<parallel type='dev'><source path='/srv/canary-parport0'/><target port='0'/></parallel>
<console type='file'><source path='/srv/canary-serial.log'/><target type='serial' port='0'/></console>
<channel type='unix'><source mode='bind' path='/srv/canary-agent.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>
<graphics type='vnc' port='5901' autoport='no' websocket='5701' passwd='canary-kept'/>
<graphics type='spice' port='5911' tlsPort='5912' autoport='no'/>
<vsock model='virtio'><cid auto='no' address='77'/></vsock>`}.define(t, h)
	clone, err := Clone(t.Context(), h, CloneOptions{Source: "rich", Start: ClonePrint})
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{
		"000000000001", "mytap0", "09b11c53", "/srv/canary", "5901", "5701", "5911", "5912", `address="77"`, "52:54:00:00:00",
	} {
		if strings.Contains(clone.XML, gone) {
			t.Errorf("the clone has its source's %s", gone)
		}
	}
	for _, kept := range []string{`service="2445"`, `passwd="canary-kept"`, "<entry name=\"serial\">42</entry>", "org.qemu.guest_agent.0", "persistent_state"} {
		if !strings.Contains(clone.XML, kept) {
			t.Errorf("the clone lacks its source's %s", kept)
		}
	}
	for _, said := range []string{"VNC: a port chosen at start, not 5901", "SPICE over TLS", "serial port 1: a pty", "serial port 2: a pty", "serial port 3: no log", "parallel port 1", "TPM: a new one", "vsock"} {
		if !slices.ContainsFunc(clone.Notes, func(note string) bool { return strings.HasPrefix(note, said) }) {
			t.Errorf("there is no note %q:\n%s", said, strings.Join(clone.Notes, "\n"))
		}
	}
	if slices.ContainsFunc(clone.Notes, func(note string) bool { return strings.HasPrefix(note, "console") }) {
		t.Errorf("the first serial port is mentioned twice: %q", clone.Notes)
	}
	dom, err := h.Define(t.Context(), clone.Name, clone.XML, false)
	if err != nil {
		t.Fatalf("libvirt does not take it: %v\n%s", err, clone.XML)
	}
	defer dom.Free()
	ephemeral, err := Clone(t.Context(), h, CloneOptions{Source: "rich", Target: "short", Start: CloneEphemeral, Dir: t.TempDir()})
	if err != nil || strings.Contains(ephemeral.XML, "persistent_state") {
		t.Errorf("the TPM of an ephemeral clone would outlive it: %v", err)
	}
}

func TestCloneRefuses(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir := web(t, h)
	disk := filepath.Join(dir, "web.qcow2")
	twoNICs := `<interface type='network'><source network='default'/></interface><interface type='network'><source network='default'/></interface>`
	sourceDomain{name: "twonics", nics: twoNICs}.define(t, h)
	sourceDomain{name: "nonic"}.define(t, h)
	sourceDomain{name: "network", disks: `<disk type='network' device='disk'><source protocol='nbd' name='x'><host name='127.0.0.1'/></source><target dev='vda' bus='virtio'/></disk>`}.define(t, h)
	sourceDomain{name: "shareable", disks: `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='` + disk + `'/><target dev='vda' bus='virtio'/><shareable/></disk>`}.define(t, h)
	sourceDomain{name: "missing", disks: diskXML(disk+"-none", "qcow2", "vda")}.define(t, h)
	sourceDomain{name: "vmdk", disks: diskXML(disk, "vmdk", "vda")}.define(t, h)
	sourceDomain{name: "notqcow2", disks: diskXML("/dev/null", "qcow2", "vda")}.define(t, h)
	sourceDomain{name: "jobs", top: `<metadata><sardine:job xmlns:sardine='` + record.Namespace + `'><id>1</id></sardine:job></metadata>`}.define(t, h)
	for name, test := range map[string]struct {
		o    CloneOptions
		want error
		text string
	}{
		"no such source":      {CloneOptions{Source: "nobody"}, errdefs.ErrNoDomain, "nobody"},
		"unknown mode":        {CloneOptions{Source: "web", Start: "sometimes"}, errdefs.ErrInvalid, "define"},
		"unknown omit":        {CloneOptions{Source: "web", OmitBackingStore: "perhaps"}, errdefs.ErrInvalid, "auto, yes or no"},
		"name with a slash":   {CloneOptions{Source: "web", Target: "../x"}, errdefs.ErrInvalid, "cannot be the name"},
		"no MAC":              {CloneOptions{Source: "web", MAC: "hello"}, errdefs.ErrInvalid, "not a MAC address"},
		"a group's MAC":       {CloneOptions{Source: "web", MAC: "01:00:5e:00:00:01"}, errdefs.ErrInvalid, "group"},
		"a long MAC":          {CloneOptions{Source: "web", MAC: "00:00:5e:00:53:01:00:01"}, errdefs.ErrInvalid, "not a MAC address"},
		"MAC for several":     {CloneOptions{Source: "twonics", MAC: "52:54:00:00:00:09"}, errdefs.ErrInvalid, "this one has 2"},
		"MAC for none":        {CloneOptions{Source: "nonic", MAC: "52:54:00:00:00:09"}, errdefs.ErrInvalid, "this one has 0"},
		"network disk":        {CloneOptions{Source: "network"}, errdefs.ErrInvalid, "vda is neither a file nor"},
		"shareable disk":      {CloneOptions{Source: "shareable"}, errdefs.ErrInvalid, "shareable"},
		"disk is missing":     {CloneOptions{Source: "missing"}, os.ErrNotExist, "vda"},
		"disk of a format":    {CloneOptions{Source: "vmdk"}, nil, "neither qcow2 nor raw"},
		"disk is not qcow2":   {CloneOptions{Source: "notqcow2"}, errdefs.ErrInvalid, "/dev/null"},
		"machine of a job":    {CloneOptions{Source: "jobs"}, errdefs.ErrInvalid, "machine of a job"},
		"directory is a file": {CloneOptions{Source: "web", Dir: disk}, nil, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			if test.o.Dir == "" {
				test.o.Dir = out
			}
			clone, err := Clone(t.Context(), h, test.o)
			if err == nil || (test.want != nil && !errors.Is(err, test.want)) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("got %+v, %v; want %v with %q", clone, err, test.want, test.text)
			}
			if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left: %s with %q", out, contents(t, out))
			}
			if regexp.MustCompile(`virError|Code=`).MatchString(err.Error()) {
				t.Errorf("not for people: %v", err)
			}
		})
	}
}

// A domain that is running or saved cannot be cloned: its disks change.
func TestCloneRefusesRunningAndSaved(t *testing.T) {
	h := virttest.OpenEmpty(t)
	web(t, h)
	sourceDomain{name: "diskless"}.define(t, h)
	for _, name := range []string{"web", "diskless"} {
		dom, err := h.Domain(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		defer dom.Free()
		if err := dom.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Clone(t.Context(), h, CloneOptions{Source: "web", Dir: t.TempDir()}); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "is running") {
		t.Errorf("running: %v", err)
	}
	if _, err := Clone(t.Context(), h, CloneOptions{Source: "diskless", Dir: t.TempDir()}); err != nil {
		t.Errorf("running, but without a disk: %v", err)
	}
	dom, err := h.Domain(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	if err := dom.Libvirt().ManagedSave(0); err != nil {
		t.Fatal(err)
	}
	if _, err := Clone(t.Context(), h, CloneOptions{Source: "web", Dir: t.TempDir()}); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "has a managed save") {
		t.Errorf("saved: %v", err)
	}
}

// A clone that fails after its files were created removes them.
func TestCloneLeavesNothingOnFailure(t *testing.T) {
	h := virttest.OpenEmpty(t)
	dir := web(t, h)
	disk := filepath.Join(dir, "web.qcow2")
	vars := filepath.Join(dir, "vars")
	if err := os.Mkdir(vars, 0o755); err != nil { // no file: the copy fails, after the overlay
		t.Fatal(err)
	}
	sourceDomain{name: "late", disks: diskXML(disk, "qcow2", "vda"), os: `<os><type arch='x86_64'>hvm</type>
<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>` + vars + `</nvram></os>`}.define(t, h)
	second := diskXML(disk, "qcow2", "vda") + diskXML(filepath.Join(dir, "b.vmdk"), "vmdk", "vdb")
	if err := os.WriteFile(filepath.Join(dir, "b.vmdk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sourceDomain{name: "second", disks: second}.define(t, h)
	for _, name := range []string{"late", "second"} {
		existing := t.TempDir()
		for _, out := range []string{existing, filepath.Join(existing, "new")} {
			if clone, err := Clone(t.Context(), h, CloneOptions{Source: name, Dir: out}); err == nil {
				t.Errorf("%s was cloned: %+v", name, clone)
			}
			if left := contents(t, existing); len(left) > 0 {
				t.Errorf("%s: left: %q", name, left)
			}
		}
		if _, err := h.Domain(t.Context(), name+"-clone"); !errors.Is(err, errdefs.ErrNoDomain) {
			t.Errorf("%s: its domain is there: %v", name, err)
		}
	}
}

func TestNewMAC(t *testing.T) {
	mac, err := net.ParseMAC(newMAC())
	if err != nil || mac[0]&3 != 2 { // locally administered, of one station
		t.Errorf("%v, %v", mac, err)
	}
}
