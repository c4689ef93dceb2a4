package domain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
)

// build builds the domain of a source, with files in directories that do not exist.
func build(t *testing.T, source Source, backingStore bool) (*libvirtxml.Domain, error) {
	t.Helper()
	result, _, err := Build(source)
	if err != nil {
		return nil, err
	}
	files := Files{NVRAM: "/nowhere/clones/machine/nvram.fd", Overlays: map[string]string{}, BackingStore: backingStore}
	for _, d := range disk.TopDisks(source.Disks) {
		if !d.CDROM {
			files.Overlays[d.Name] = filepath.Join("/nowhere/clones", d.Name)
		}
	}
	return result.Domain, ApplyInstance(result.Domain, "machine", source.Disks, files)
}

// Only images that ask for secure boot get firmware that requires signatures.
func TestSecureBoot(t *testing.T) {
	image := func(attributes, children string) []byte {
		return []byte(`<domain type='kvm'><memory>262144</memory><os ` + attributes + `><type arch='x86_64' machine='q35'>hvm</type>` +
			children + `</os><devices><disk type='file'><source file='disk.qcow2'/><target dev='vda'/></disk></devices></domain>`)
	}
	disks := []disk.Disk{{Name: "disk.qcow2", Path: "/nowhere/disk.qcow2", Format: "qcow2", VirtualSize: 1 << 20}}
	for _, test := range []struct {
		name   string
		source Source
		want   string // the feature secure-boot
	}{
		{"default machine, which has UEFI", Source{Architecture: "arm64"}, "no"},
		{"BIOS", Source{}, ""},
		{"image", Source{DomainXML: image("firmware='efi'", "")}, "no"},
		{"image by path", Source{DomainXML: image("", "<loader type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>")}, "no"},
		{"image that asks", Source{DomainXML: image("firmware='efi'", "<firmware><feature enabled='yes' name='secure-boot'/></firmware>")}, "yes"},
		{"image that asks for a loader", Source{DomainXML: image("firmware='efi'", "<loader secure='yes'/>")}, ""},
		{"image that declines", Source{DomainXML: image("firmware='efi'", "<firmware><feature enabled='no' name='secure-boot'/></firmware>")}, "no"},
		{"image that wants no keys", Source{DomainXML: image("firmware='efi'", "<firmware><feature enabled='no' name='enrolled-keys'/></firmware>")}, "no"},
		{"image that wants keys", Source{DomainXML: image("firmware='efi'", "<firmware><feature enabled='yes' name='enrolled-keys'/></firmware>")}, ""},
		{"trusted image", Source{Trusted: true, DomainXML: image("firmware='efi'", "")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.source.Disks = disks
			d, err := build(t, test.source, false)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if d.OS.FirmwareInfo != nil {
				for _, f := range d.OS.FirmwareInfo.Features {
					if f.Name == "secure-boot" {
						got += f.Enabled
					}
				}
			}
			if got != test.want {
				t.Errorf("secure-boot is %q, want %q", got, test.want)
			}
		})
	}
}

func TestTemplate(t *testing.T) {
	disks := []disk.Disk{
		{Name: "base.qcow2", Path: "/images/base.qcow2", Format: "qcow2"},
		{Name: "boot.qcow2", Path: "/images/boot.qcow2", Format: "qcow2", Backing: "base.qcow2"},
		{Name: "data.raw", Path: "/images/data.raw", Format: "raw"},
		{Name: "more.qcow2", Path: "/images/more.qcow2", Format: "qcow2"},
		{Name: "tools.iso", Path: "/images/tools.iso", Format: "raw", CDROM: true},
	}
	blank := func(target string) string {
		return `<disk device='disk'><target dev='` + target + `' bus='sata'/></disk>`
	}
	named := func(file, target string) string {
		return `<disk type='file' device='disk'><source file='` + file + `'/><target dev='` + target + `' bus='sata'/></disk>`
	}
	for _, test := range []struct {
		name, devices string
		want          []string // sources, in order
		err           string
	}{
		{"by order", blank("sda") + blank("sdb") + blank("sdc"), []string{"boot.qcow2", "data.raw", "more.qcow2"}, ""},
		{"by name", named("more.qcow2", "sda") + named("data.raw", "sdb"), []string{"more.qcow2", "data.raw"}, ""},
		{"by both", blank("sda") + named("/anywhere/boot.qcow2", "sdb") + blank("sdc"), []string{"data.raw", "boot.qcow2", "more.qcow2"}, ""},
		{"a CD-ROM by name, an empty drive", named("boot.qcow2", "sda") + strings.Replace(named("tools.iso", "sdb"), "'disk'", "'cdrom'", 1) + `<disk device='cdrom'><target dev='sdc' bus='sata'/></disk>`,
			[]string{"boot.qcow2", "tools.iso", ""}, ""},
		{"one too many", blank("sda") + blank("sdb") + blank("sdc") + blank("sdd"), nil, "no disk in the image for sdd (the image has: base.qcow2, boot.qcow2, data.raw, more.qcow2, tools.iso)"},
		{"a name that is none", named("other.qcow2", "sda"), nil, "not a layer of the image"},
		{"not XML", "<disk", nil, "the template /"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "template.xml")
			doc := `<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><memory unit='GiB'>4</memory>
<os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/srv/OVMF_CODE.fd</loader><nvram>/srv/none.fd</nvram></os>
<devices>` + test.devices + `</devices><qemu:commandline><qemu:arg value='-device'/><qemu:arg value='isa-applesmc'/></qemu:commandline></domain>`
			if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
				t.Fatal(err)
			}
			source := Source{Template: path, Disks: disks, DomainXML: []byte("<not read>")}
			result, _, err := Build(source)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range result.Domain.Devices.Disks {
				got = append(got, d.Source.File.File)
			}
			if strings.Join(got, " ") != strings.Join(test.want, " ") {
				t.Errorf("disks %q, want %q", got, test.want)
			}
			d, err := build(t, source, false)
			if err != nil {
				t.Fatal(err)
			}
			if d.QEMUCommandline == nil || d.OS.Loader.Path != "/srv/OVMF_CODE.fd" || d.OS.NVRam.NVRam != "/nowhere/clones/machine/nvram.fd" {
				t.Errorf("the administrator's own: %+v, %+v", d.QEMUCommandline, d.OS)
			}
		})
	}
	if _, _, err := Build(Source{Template: "/nowhere/template.xml", Disks: disks}); err == nil || !strings.Contains(err.Error(), "/nowhere/template.xml") {
		t.Errorf("a template that is not there: %v", err)
	}
}

// The setting has precedence over the version of libvirt.
func TestWritesBackingStore(t *testing.T) {
	const old = 9_000_000
	for choice, want := range map[string]bool{OmitYes: false, OmitNo: true, OmitAuto: false, "": false} {
		if got, err := WritesBackingStore(choice, old); err != nil || got != want {
			t.Errorf("omit %q: backing store written: %v, %v, want %v", choice, got, err, want)
		}
	}
	if got, err := WritesBackingStore("", 9_001_000); err != nil || !got {
		t.Errorf("a new libvirt: %v, %v", got, err)
	}
	if _, err := WritesBackingStore("perhaps", old); err == nil {
		t.Error("an unknown choice was taken")
	}
	source := Source{Disks: []disk.Disk{{Name: "disk.qcow2", Path: "/nowhere/disk.qcow2", Format: "qcow2", VirtualSize: 1 << 20}}}
	for _, want := range []bool{true, false} {
		d, err := build(t, source, want)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Devices.Disks[0].BackingStore != nil; got != want {
			t.Errorf("backing store written: %v, want %v", got, want)
		}
	}
}
