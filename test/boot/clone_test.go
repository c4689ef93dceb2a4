//go:build boot

package boot

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/domain"
)

// A source is a domain of the test guest, defined, to be cloned.
type source struct {
	name string
	port int // on 127.0.0.1, to the SSH server of whichever clone runs
}

// defineSource defines a domain with the disks given, a CD-ROM, a TPM and UEFI
// firmware with variables of its own.
func (l *lab) defineSource(t *testing.T, name string, disks ...string) source {
	t.Helper()
	s := source{name: name, port: freePort(t)}
	iso := filepath.Join(l.dir, name+".iso")
	if err := os.WriteFile(iso, []byte(strings.Repeat("shared ", 64<<10)), 0o644); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(l.dir, name+"_VARS.fd")
	copyTo(t, "/usr/share/OVMF/OVMF_VARS_4M.fd", vars)
	var devices strings.Builder
	for i, path := range disks {
		fmt.Fprintf(&devices, "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vd%c' bus='virtio'/></disk>\n", path, 'a'+i)
	}
	file := filepath.Join(l.dir, name+".xml")
	doc := fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>%s</name><memory unit='MiB'>320</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type>
<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>%s</nvram></os>
<features><acpi/></features><cpu mode='custom' match='exact' check='none'><model>qemu64</model></cpu>
<devices>%s
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%s'/><target dev='sda' bus='sata'/><readonly/></disk>
<serial type='file'><source path='%s'/></serial>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
</devices>
<qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='user,id=lab,hostfwd=tcp:127.0.0.1:%d-:22'/>
<qemu:arg value='-device'/><qemu:arg value='virtio-net-pci,netdev=lab,addr=0x1e'/></qemu:commandline>
</domain>`, name, vars, devices.String(), iso, filepath.Join(l.dir, name+"-serial.log"), s.port)
	if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	l.virsh(t, "define", file)
	t.Cleanup(func() { l.virsh(t, "undefine", name, "--keep-nvram") })
	return s
}

// uefiGuest is the test guest's disk, made to boot from UEFI: the firmware's
// shell runs startup.nsh of the first file system that has one.
func (l *lab) uefiGuest(t *testing.T) string {
	t.Helper()
	raw, disk := filepath.Join(l.dir, "uefi.raw"), filepath.Join(l.dir, "uefi.qcow2")
	run(t, "qemu-img", "convert", "-O", "raw", l.guest, raw)
	run(t, "mcopy", "-i", raw, "::/syslinux.cfg", filepath.Join(l.dir, "syslinux.cfg"))
	config, err := os.ReadFile(filepath.Join(l.dir, "syslinux.cfg"))
	if err != nil {
		t.Fatal(err)
	}
	_, arguments, _ := strings.Cut(string(config), "APPEND ")
	script := filepath.Join(l.dir, "startup.nsh")
	if err := os.WriteFile(script, []byte(`vmlinuz initrd=\initrd `+arguments), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", raw, script, "::/startup.nsh")
	run(t, "qemu-img", "convert", "-O", "qcow2", raw, disk)
	if err := os.Remove(raw); err != nil {
		t.Fatal(err)
	}
	return disk
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// command runs a command in the clone of s that runs, once it answers.
func (s source) command(t *testing.T, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		out, err := s.try(line)
		if err == nil {
			return strings.TrimSpace(out)
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the clone of %s does not answer: %v", s.name, err)
		}
	}
}

func (s source) try(line string) (string, error) {
	client, err := ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port), &ssh.ClientConfig{
		User: guestLogin.User, Auth: []ssh.AuthMethod{ssh.Password(guestLogin.Password)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // a guest of this test
		Timeout:         2 * time.Second,
	})
	if err != nil {
		return "", err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	out, err := session.CombinedOutput(line)
	return string(out), err
}

// state lists the domains and the files of machines.
func (l *lab) state(t *testing.T) string {
	t.Helper()
	var files []string
	roots := []string{l.dir, "/var/lib/libvirt/swtpm", "/var/lib/libvirt/qemu/nvram"}
	if config, err := os.UserConfigDir(); err == nil {
		roots = append(roots, filepath.Join(config, "libvirt", "qemu", "swtpm"), filepath.Join(config, "libvirt", "qemu", "nvram"))
	}
	for _, root := range roots {
		filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				files = append(files, path)
			}
			return nil
		})
	}
	return l.virsh(t, "list", "--all", "--name") + strings.Join(files, "\n")
}

// awaitState waits until all that a machine had is gone: libvirt and swtpm need a
// moment after virsh returns.
func (l *lab) awaitState(t *testing.T, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		got := l.state(t)
		if got == want {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Errorf("before:\n%s\nafter:\n%s", want, got)
			return
		}
	}
}

// An ephemeral clone of a machine with two disks, CD-ROM, UEFI variables and TPM
// boots, writes to its disks, and leaves nothing; its source is as it was.
func TestCloneEphemeral(t *testing.T) {
	mostlyIn(t, "system", func(t *testing.T, l *lab) {
		system := l.uefiGuest(t)
		data := filepath.Join(l.dir, "data.qcow2")
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", data, "8M")
		s := l.defineSource(t, "source", system, data)
		for _, path := range []string{system, data} { // libvirt gives disks of a source to QEMU's user, too
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		before, sums := l.state(t), run(t, "sha256sum", system, data)
		owner := run(t, "stat", "-c", "%u:%g %a", system, data)

		out := filepath.Join(l.dir, "clones")
		clone, err := define.Clone(t.Context(), l.host, define.CloneOptions{Source: "source", Start: define.CloneEphemeral, Dir: out})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("notes: %q", clone.Notes)
		if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
			t.Errorf("its files still have names: %v, %v", left, err)
		}
		if now := run(t, "stat", "-c", "%u:%g %a", system, data); now != owner {
			t.Errorf("the source's disks belonged to\n%sand now to\n%s", owner, now)
		}
		got := s.command(t, `test -d /sys/firmware/efi && echo efi; cat /sys/block/vdb/size; ls /sys/class/tpm 2>/dev/null; dd if=/dev/zero of=/dev/vdb bs=1M count=4 2>&1 | tail -1; sync`)
		if !strings.HasPrefix(got, "efi\n16384") {
			t.Errorf("the guest says %q", got)
		}
		l.virsh(t, "destroy", clone.Name)
		l.awaitState(t, before)
		if now := run(t, "sha256sum", system, data); now != sums {
			t.Errorf("the source's disks changed:\n%s%s", sums, now)
		}
	})
}

// Define and persistent: the clone survives being shut off, and virsh can remove
// all of it.
func TestClonePersistent(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		system := l.uefiGuest(t)
		s := l.defineSource(t, "source", system)
		before := l.state(t)
		out := filepath.Join(l.dir, "clones")
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		kept, err := define.Clone(t.Context(), l.host, define.CloneOptions{Source: "source", Start: define.ClonePersistent, Dir: out, OmitBackingStore: domain.OmitNo})
		if err != nil {
			t.Fatal(err)
		}
		defined, err := define.Clone(t.Context(), l.host, define.CloneOptions{Source: "source", Dir: out})
		if err != nil || defined.Name != "source-clone-1" {
			t.Fatalf("%+v, %v", defined, err)
		}
		// UEFI takes its time under emulation: one of the clones for each mode, at night.
		boots := func(mode string) {
			if l.mode != mode || !nightly {
				return
			}
			if got := s.command(t, "test -d /sys/firmware/efi && echo efi"); got != "efi" {
				t.Errorf("the guest says %q", got)
			}
		}
		boots("session")
		l.virsh(t, "destroy", kept.Name)
		l.virsh(t, "start", defined.Name) // the port is free again
		boots("system")
		l.virsh(t, "destroy", defined.Name)
		for _, clone := range []*define.ClonedDomain{kept, defined} {
			l.virsh(t, "undefine", clone.Name, "--nvram")
			for _, path := range clone.Files[:1] { // the overlay; virsh removed the variables
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		}
		l.awaitState(t, before)
	})
}

// QEMU cannot start: neither the domain nor its files stay.
func TestCloneThatDoesNotStart(t *testing.T) {
	mostlyIn(t, "session", func(t *testing.T, l *lab) {
		system := l.uefiGuest(t)
		s := l.defineSource(t, "source", system)
		before := l.state(t)
		taken, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", s.port)) // which QEMU wants
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		for _, start := range []define.StartMode{define.CloneEphemeral, define.ClonePersistent} {
			clone, err := define.Clone(t.Context(), l.host, define.CloneOptions{Source: "source", Start: start, Dir: filepath.Join(l.dir, "clones")})
			if err == nil || !strings.Contains(err.Error(), "host forwarding rule") {
				t.Errorf("%s: %+v, %v", start, clone, err)
			}
			l.awaitState(t, before)
		}
	})
}
