//go:build boot

// Package admin tests import and export with a real libvirtd and QEMU, as an
// ordinary user and as root.
package admin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
)

const program = "gitlab-sardine-executor"

func TestMain(m *testing.M) { testbed.Main(m, "gitlab-sardine-executor/cmd/"+program) }

// A site is an installation, and a directory of its user.
type site struct {
	*testbed.Site
	dir string
}

func newSite(t *testing.T, mode *testbed.Mode) *site {
	t.Helper()
	return &site{Site: testbed.NewSite(t, mode, program), dir: mode.Dir(t)}
}

func (s *site) run(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(s.Run(t, args...))
}

// fails runs a command that must, and returns what it says.
func (s *site) fails(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := s.Mode.Command(ctx, s.Driver, append([]string{"--config", s.Config}, args...)...).CombinedOutput()
	if err == nil {
		t.Errorf("%v succeeded:\n%s", args, out)
	}
	return string(out)
}

// layoutOf copies a fixture to where the user of the mode can read it.
func (s *site) layoutOf(t *testing.T, fixture string) string {
	t.Helper()
	return s.copyLayout(t, filepath.Join("..", "..", "oci", "testdata", "sardinecake", fixture, "oci"), fixture)
}

func (s *site) copyLayout(t *testing.T, source, name string) string {
	t.Helper()
	layout := filepath.Join(s.dir, name)
	err := filepath.WalkDir(source, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		s.Mode.Run(t, "mkdir", "-p", filepath.Dir(filepath.Join(layout, name)))
		s.Mode.WriteFile(t, filepath.Join(layout, name), string(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return layout
}

// TestImportExport takes an image with a backing chain to libvirt and back, twice:
// a machine that was changed, too.
func TestImportExport(t *testing.T) {
	testbed.MostlyIn(t, "session", nightly, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		image := "oci:" + s.layoutOf(t, "chain") + ":latest"
		if got := s.run(t, "import", "--quiet", "--name", "base", image); got != "base" {
			t.Errorf("import prints %q", got)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
			defer cancel()
			mode.Command(ctx, "virsh", "-c", mode.Connect, "destroy", "base").Run()
			mode.Command(ctx, "virsh", "-c", mode.Connect, "undefine", "base").Run()
		})

		// It is in use, and its name is taken.
		if list := s.run(t, "images"); !strings.Contains(list, " base") {
			t.Errorf("images does not say who uses it:\n%s", list)
		}
		if said := s.run(t, "prune", "--older-than", "0s"); !strings.Contains(said, "Removed 0 images") {
			t.Errorf("prune: %s", said)
		}
		if said := s.fails(t, "import", "--quiet", "--name", "base", image); !strings.Contains(said, "domain exists already") {
			t.Errorf("a name that is taken: %s", said)
		}

		// It runs, and is not packed meanwhile.
		mode.Virsh(t, "start", "base")
		running := "oci:" + filepath.Join(s.dir, "running") + ":1"
		if said := s.fails(t, "export", "base", running); !strings.Contains(said, "shut it down first") {
			t.Errorf("while it runs: %s", said)
		}
		mode.Virsh(t, "destroy", "base")

		// What was exported is what was imported, and then what was changed.
		overlay := filepath.Join(s.Storage, "vms", "base", "overlay.qcow2")
		s.roundTrip(t, "unchanged", overlay)
		mode.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 64k", overlay)
		s.roundTrip(t, "changed", overlay)

		mode.Virsh(t, "undefine", "base")
		if said := s.run(t, "prune", "--older-than", "0s"); strings.Contains(said, "Removed 0 images") {
			t.Errorf("nobody uses them any more: %s", said)
		}
	})
}

// marked is a domain that says so, with something that only those get whose makers
// are trusted, and UEFI variables in a file.
const marked = `<domain type="qemu" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
<name>any</name><title>%s</title><memory unit="MiB">128</memory><vcpu>1</vcpu>
<os><type arch="x86_64" machine="q35">hvm</type><loader readonly="yes" type="pflash">/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>%s</nvram></os><features><acpi/></features>
<devices><disk type="file" device="disk">%s<target dev="sda" bus="sata"/></disk></devices>
<qemu:commandline><qemu:arg value="-fw_cfg"/><qemu:arg value="name=opt/org.example/mark,string=%s"/></qemu:commandline>
</domain>`

// An image whose section of the settings has a domain, or is trusted, is imported
// as a job's machine would be made of it.
func TestImportDomain(t *testing.T) {
	testbed.MostlyIn(t, "system", nightly, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		ovmf, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
		if err != nil {
			t.Fatal(err)
		}
		vars := mode.WriteFile(t, filepath.Join(s.dir, "vars.fd"), string(ovmf))
		template := mode.WriteFile(t, filepath.Join(s.dir, "template.xml"), fmt.Sprintf(marked, "template", vars, "", "template"))
		own := s.exportDomain(t, fmt.Sprintf(marked, "image", vars, `<source file="disk.raw"/>`, "image"))
		settings, err := os.ReadFile(s.Config)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			name, section, mark string
		}{
			{"trusted", "trusted = true", "image"},
			{"template", fmt.Sprintf("domain = %q", template), "template"},
		} {
			t.Run(test.name, func(t *testing.T) {
				mode.WriteFile(t, s.Config, string(settings)+fmt.Sprintf("[[image]]\nmatch = %q\n%s\n", own, test.section))
				said := s.run(t, "import", "--quiet", "--name", test.name, own)
				t.Cleanup(func() { mode.Virsh(t, "undefine", "--nvram", test.name) })
				xml := mode.Virsh(t, "dumpxml", "--inactive", test.name)
				overlay, nvram := filepath.Join(s.Storage, "vms", test.name, "disk.qcow2"), filepath.Join(s.Storage, "vms", test.name, "nvram.fd")
				if !strings.Contains(xml, overlay) || !strings.Contains(xml, "<name>"+test.name+"</name>") {
					t.Errorf("not the machine that was imported (%s):\n%s", said, xml)
				}
				if strings.Contains(xml, vars) || !strings.Contains(xml, nvram) {
					t.Errorf("its UEFI variables are not its own:\n%s", xml)
				}
				mode.Virsh(t, "start", test.name)
				defer mode.Virsh(t, "destroy", test.name)
				_, mark, _ := strings.Cut(xml, "string=")
				mark, _, _ = strings.Cut(mark, "'")
				if mark != test.mark {
					t.Errorf("its mark is %q, want %q:\n%s", mark, test.mark, xml)
				}
			})
		}
		if now, err := os.ReadFile(vars); err != nil || string(now) != string(ovmf) {
			t.Errorf("the file of UEFI variables was changed (%v)", err)
		}

		// Neither without such a section, nor of a template that is not there.
		mode.WriteFile(t, s.Config, string(settings))
		if said := s.fails(t, "import", "--quiet", "--name", "none", own); !strings.Contains(said, "only images that the administrator trusts") {
			t.Errorf("an image that is not trusted: %s", said)
		}
		mode.WriteFile(t, s.Config, string(settings)+fmt.Sprintf("[[image]]\nmatch = %q\ndomain = '/no/such/template.xml'\n", own))
		if said := s.fails(t, "import", "--quiet", "--name", "none", own); !strings.Contains(said, "/no/such/template.xml") {
			t.Errorf("a template that is not there: %s", said)
		}
		if _, err := os.Stat(filepath.Join(s.Storage, "vms", "none")); err == nil {
			t.Error("a failed import has left files")
		}
	})
}

// exportDomain packs an empty disk, disk.raw, with a domain, and returns the
// layout.
func (s *site) exportDomain(t *testing.T, xml string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	ref, err := oci.ParseReference("oci:" + layout + ":1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := export.Export(t.Context(), ref, export.Options{Disks: []export.Disk{{Path: disk}}, DomainXML: []byte(xml)}); err != nil {
		t.Fatal(err)
	}
	return "oci:" + s.copyLayout(t, layout, "domain") + ":1"
}

// roundTrip exports the machine, imports the image under another name, and
// compares what the two guests would see. Both formats must do.
func (s *site) roundTrip(t *testing.T, tag, overlay string) {
	t.Helper()
	for _, format := range []string{"sardinecake", "chunked"} {
		name := tag + "-" + format
		layout := "oci:" + filepath.Join(s.dir, "exported") + ":" + name
		s.run(t, "export", "--quiet", "--format", format, "base", layout)
		s.run(t, "import", "--quiet", "--name", name, layout)
		copied := filepath.Join(s.Storage, "vms", name, "overlay.qcow2")
		s.Mode.Run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", overlay, copied)
		xml := s.Mode.Virsh(t, "dumpxml", name)
		if strings.Contains(xml, "/vms/base/") || !strings.Contains(xml, copied) {
			t.Errorf("%s has the disks of another:\n%s", name, xml)
		}
		s.Mode.Virsh(t, "undefine", name)
	}
}
