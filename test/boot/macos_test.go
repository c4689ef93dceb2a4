//go:build boot

package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed/host"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/disk"
)

// The template of docs/macos.md is one that libvirt and QEMU start. There is no
// macOS here: the disks are empty.
func TestMacOSTemplate(t *testing.T) {
	page := filepath.Join(host.TempDir, "macos.md")
	if os.Getenv(modeVariable) == "" { // the users of the modes may not look into this tree
		copyTo(t, filepath.Join("..", "..", "docs", "macos.md"), page)
	}
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		page, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(string(page), "```xml\n")
		text, _, _ := strings.Cut(rest, "```")
		if !found {
			t.Fatal("docs/macos.md has no template")
		}
		vars := filepath.Join(l.dir, "vars.fd")
		copyTo(t, "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
		text = strings.NewReplacer("/srv/macos/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/srv/macos/OVMF_VARS.fd", vars).Replace(text)
		template := filepath.Join(l.dir, "macos.xml")
		if err := os.WriteFile(template, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		spec := l.spec("macos", func(s *vm.Spec) {
			s.Template, s.Memory = template, 256<<20
			s.Disks = nil
			for _, name := range []string{"OpenCore.qcow2", "macos.qcow2"} {
				path := filepath.Join(l.dir, name)
				run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
				s.Disks = append(s.Disks, disk.Disk{Name: name, Path: path, Format: "qcow2", VirtualSize: 8 << 20})
			}
		})
		guest := l.start(t, spec)
		files := openFiles(t, guest.Name())
		for _, name := range []string{"nvram.fd", "OpenCore.qcow2", "macos.qcow2"} {
			if !strings.Contains(files, filepath.Join(spec.OverlayDir, "macos", name)+" (deleted)") {
				t.Errorf("QEMU does not hold the machine's own %s open:\n%s", name, files)
			}
		}
		devices := l.virsh(t, "qemu-monitor-command", "macos", "--hmp", "info qtree")
		for _, want := range []string{"isa-applesmc", "vmxnet3", "qemu-xhci"} {
			if !strings.Contains(devices, want) {
				t.Errorf("the machine has no %s", want)
			}
		}
		awaitConsole(t, filepath.Join(spec.JobDir, "console.log"), "BdsDxe")
	})
}

// awaitConsole waits until a guest has written something.
func awaitConsole(t *testing.T, path, want string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		text, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(text), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the console never said %q: %v\n%s", want, err, text)
		}
	}
}
