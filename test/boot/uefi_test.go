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
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domainxml"
)

// An image without domain XML, with a disk that boots by UEFI alone, gets UEFI. Its variables
// are in the machine's own directory of clones, which is gone once QEMU runs.
func TestUEFI(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		spec := l.spec("uefi", onDisk(l.uefiOnly(t, true)))
		guest := l.ready(t, spec)
		if notes := strings.Join(guest.Notes, "\n"); !strings.Contains(notes, "boots by UEFI: disk uefi.qcow2 has a GPT without a boot sector for BIOS and with an EFI system partition") {
			t.Errorf("notes: %s", notes)
		}
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
			if i == 0 && l.mode == "system" && nightly { // where QEMU runs as another user
				if err := waitReady(t, guest, guestLogin); err != nil {
					t.Fatalf("%v\n%s", err, console.TailOf(err))
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

// onDisk is an image without domain XML.
func onDisk(path string) func(*vm.Spec) {
	return func(s *vm.Spec) {
		s.Memory = 320 << 20
		s.Disks = []disk.Disk{{Name: filepath.Base(path), Path: path, Format: "qcow2", VirtualSize: 64 << 20}}
	}
}

// uefiOnly is the test guest on a compressed disk with a GPT and an EFI system partition,
// where systemd-boot starts it, or nothing does.
func (l *lab) uefiOnly(t *testing.T, bootable bool) string {
	t.Helper()
	path := func(name string) string { return filepath.Join(l.dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("uefi.raw", "")
	if err := os.Truncate(path("uefi.raw"), 64<<20); err != nil {
		t.Fatal(err)
	}
	write("uefi.layout", "label: gpt\nstart=2048,size=60M,type=C12A7328-F81F-11D2-BA4B-00C04FD430C8\n")
	run(t, "sh", "-c", "/sbin/sfdisk --quiet "+path("uefi.raw")+" <"+path("uefi.layout"))
	system := path("uefi.raw") + "@@1M"
	run(t, "mformat", "-i", system, "-T", "122880", "-h", "16", "-s", "63", "::")
	if bootable {
		run(t, "qemu-img", "convert", "-O", "raw", l.guest, path("bios.raw"))
		for _, name := range []string{"vmlinuz", "initrd", "syslinux.cfg"} {
			run(t, "mcopy", "-n", "-i", path("bios.raw"), "::/"+name, path(name))
		}
		config, err := os.ReadFile(path("syslinux.cfg"))
		if err != nil {
			t.Fatal(err)
		}
		_, arguments, _ := strings.Cut(string(config), "APPEND ")
		write("guest.conf", "title guest\nlinux /vmlinuz\ninitrd /initrd\noptions "+arguments)
		run(t, "mmd", "-i", system, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
		for from, to := range map[string]string{
			"/usr/lib/systemd/boot/efi/systemd-bootx64.efi": "EFI/BOOT/BOOTX64.EFI",
			path("vmlinuz"): "vmlinuz", path("initrd"): "initrd", path("guest.conf"): "loader/entries/guest.conf",
		} {
			run(t, "mcopy", "-i", system, from, "::/"+to)
		}
	}
	run(t, "qemu-img", "convert", "-c", "-O", "qcow2", path("uefi.raw"), path("uefi.qcow2"))
	return path("uefi.qcow2")
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
