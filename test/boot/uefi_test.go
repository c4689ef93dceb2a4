//go:build boot

package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
)

// A job's machine that boots from UEFI has its variables in its own directory of
// clones, which is gone once QEMU runs.
func TestUEFI(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		spec := l.spec("uefi", onUEFI(l.uefiGuest(t)))
		guest := l.ready(t, spec)
		if got, _ := script(t, guest, "test -d /sys/firmware/efi && echo efi"); got != "efi\n" {
			t.Errorf("the guest says %q", got)
		}
		files := openFiles(t, "uefi")
		for _, name := range []string{"nvram.fd (deleted)", "uefi.qcow2 (deleted)"} {
			if !strings.Contains(files, filepath.Join(spec.OverlayDir, "uefi", name)) {
				t.Errorf("QEMU does not hold %s open:\n%s", name, files)
			}
		}
		if left, err := os.ReadDir(spec.OverlayDir); err != nil || len(left) > 0 {
			t.Errorf("left in the directory of clones: %v, %v", left, err)
		}
		if fields := l.virsh(t, "dumpxml", "uefi"); !strings.Contains(fields, "discard='unmap'") || !strings.Contains(fields, "detect_zeroes='unmap'") || !strings.Contains(fields, "cache='unsafe'") {
			t.Errorf("its disks:\n%s", fields)
		}
	})
}

// A trusted domain names UEFI variables by path: each machine gets a copy.
func TestTrustedUEFI(t *testing.T) {
	mostlyIn(t, "system", func(t *testing.T, l *lab) {
		vars := filepath.Join(l.dir, "vars.fd")
		copyTo(t, "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
		template := filepath.Join(l.dir, "template.xml")
		if err := os.WriteFile(template, fmt.Appendf(nil, `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>template</name><memory unit='MiB'>320</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>
<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>%s</nvram></os>
<features><acpi/></features>
<devices>
<disk device='disk'><target dev='vda' bus='virtio'/></disk>
<interface type='user'><model type='virtio'/></interface>
<serial type='pty'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices>
<qemu:commandline><qemu:arg value='-fw_cfg'/><qemu:arg value='name=opt/org.example/template,string=yes'/></qemu:commandline>
</domain>`, vars), 0o644); err != nil {
			t.Fatal(err)
		}
		sum := run(t, "sha256sum", vars)
		disk := l.uefiGuest(t)
		var names []string
		for i := range 2 {
			spec := l.spec(fmt.Sprintf("template-%d", i), onUEFI(disk), func(s *vm.Spec) { s.Template = template })
			guest := l.start(t, spec)
			names = append(names, guest.Name())
			if i == 0 && l.mode == "system" { // where QEMU runs as another user
				if err := waitReady(t, guest, guestLogin); err != nil {
					t.Fatalf("%v\n%s", err, vm.ConsoleOf(err))
				}
				if got, _ := script(t, guest, "test -d /sys/firmware/efi && echo efi"); got != "efi\n" {
					t.Errorf("the guest says %q", got)
				}
			}
		}
		for _, name := range names {
			if files := openFiles(t, name); !strings.Contains(files, filepath.Join(name, "nvram.fd (deleted)")) || strings.Contains(files, vars) {
				t.Errorf("%s has open:\n%s", name, files)
			}
		}
		if now := run(t, "sha256sum", vars); now != sum {
			t.Errorf("the administrator's variables changed: %s%s", sum, now)
		}
	})
}

// onUEFI is an image that brings a domain with UEFI firmware.
func onUEFI(path string) func(*vm.Spec) {
	return func(s *vm.Spec) {
		const name = "uefi.qcow2"
		s.Memory = 320 << 20
		s.Disks = []disk.Disk{{Name: name, Path: path, Format: "qcow2", VirtualSize: 48 << 20}}
		image, err := domainxml.Default(domainxml.DefaultOptions{
			UEFI: true, Disks: []domainxml.DefaultDisk{{Disk: domainxml.Disk{Name: name, Format: "qcow2"}}},
		})
		if err != nil {
			panic(err) // the options are constant
		}
		doc, err := image.Marshal()
		if err != nil {
			panic(err)
		}
		s.DomainXML = []byte(doc)
	}
}

// openFiles lists what the QEMU of a domain holds open.
func openFiles(t *testing.T, domain string) string {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range processes {
		cmdline, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(cmdline, []byte("guest="+domain+",")) {
			continue
		}
		var open []string
		handles, err := filepath.Glob(filepath.Join(filepath.Dir(file), "fd", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, handle := range handles {
			if path, err := os.Readlink(handle); err == nil {
				open = append(open, path)
			}
		}
		return strings.Join(open, "\n")
	}
	t.Fatalf("no process of domain %s", domain)
	return ""
}
