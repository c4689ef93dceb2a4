package domainxml_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
)

// TestSchema validates every result against libvirt's schema and defines it on the in-memory
// driver.
func TestSchema(t *testing.T) {
	conn, err := libvirt.NewConnect("test:///default")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, d := range results(t) {
		t.Run(name, func(t *testing.T) {
			dress(name, d)
			dom, err := conn.DomainDefineXMLFlags(marshal(t, d), libvirt.DOMAIN_DEFINE_VALIDATE)
			if err != nil {
				t.Fatalf("%v\n%s", err, marshal(t, d))
			}
			dom.Free()
		})
	}
}

// TestQEMUDriver defines every amd64 result, emulated, with libvirt's QEMU driver. It checks PCI
// topology, device models and machine type against the QEMU of this host. The driver runs in
// an unprivileged virsh with its own root directory.
func TestQEMUDriver(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no QEMU on this machine")
	}
	dir := scratch(t)
	var commands bytes.Buffer
	want := map[string]bool{}
	for name, d := range results(t) {
		if d.OS.Type.Arch != "x86_64" {
			continue
		}
		dress(name, d)
		domainxml.UseTCG(d)
		file := filepath.Join(dir, name+".xml")
		if err := os.WriteFile(file, []byte(marshal(t, d)), 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&commands, "define --validate %s\n", file)
		want[name] = true
	}
	out := virsh(t, dir, commands.String())
	for name := range want {
		if !strings.Contains(out, fmt.Sprintf("Domain '%s' defined", name)) {
			t.Errorf("QEMU's driver does not take %s", name)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestCommandLine checks the QEMU command line that libvirt generates for every hostile domain
// that was not refused. No argument may name another file or host.
func TestCommandLine(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no QEMU on this machine")
	}
	dir := scratch(t)
	var commands bytes.Buffer
	var count int
	for n, h := range hostiles() {
		result, err := domainxml.Rebuild([]byte(h.doc), domainxml.Options{Disks: layers})
		if err != nil {
			continue
		}
		name := fmt.Sprintf("%03d", n)
		d := result.Domain
		dress(name, d)
		d.Devices.Interfaces = nil // their arguments need privileges to be made up
		d.Devices.TPMs = nil       // so does swtpm
		if d.OS.Firmware == "efi" {
			d.Features = &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}} // libvirt wants both or none
		}
		domainxml.UseTCG(d)
		file := filepath.Join(dir, name+".xml")
		if err := os.WriteFile(file, []byte(marshal(t, d)), 0o644); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&commands, "echo == %s\ndomxml-to-native qemu-argv %s\n", h.name, file)
		count++
	}
	out := virsh(t, dir, commands.String())
	if n := strings.Count(out, "/qemu-system-x86_64"); n != count {
		t.Errorf("%d command lines for %d domains", n, count)
		t.Log(out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "canary") {
			t.Errorf("a canary reached QEMU: %s", line)
		}
		_, args, found := strings.Cut(line, "/qemu-system-x86_64 ")
		if !found {
			continue
		}
		for _, path := range absolutePath.FindAllString(args, -1) {
			if !ours(path[1:], dir) {
				t.Errorf("QEMU would be told of %s: %s", path[1:], args)
			}
		}
	}
}

// absolutePath matches a path in a command line, with the character before it.
var absolutePath = regexp.MustCompile(`[^A-Za-z0-9_./-]/[A-Za-z0-9_./-]+`)

// ours reports whether a path is a layer, the source of randomness, firmware that libvirt
// selected, or a file of the driver.
func ours(path, dir string) bool {
	return path == "/dev/urandom" || strings.HasPrefix(path, "/nowhere/") || strings.HasPrefix(path, "/usr/share/") ||
		strings.HasPrefix(path, dir)
}

// results are the rebuilt domains of testdata and the default domains.
func results(t *testing.T) map[string]*libvirtxml.Domain {
	all := map[string]*libvirtxml.Domain{}
	for _, file := range documents(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".xml")
		if name == "macos" {
			continue
		}
		all[name] = rebuildFile(t, file, domainxml.Options{Disks: layers}).Domain
	}
	for _, c := range defaults {
		d, err := domainxml.Default(c.opts)
		if err != nil {
			t.Fatal(err)
		}
		all["default-"+c.name] = d
	}
	return all
}

// dress adds what callers set in a domain.
func dress(name string, d *libvirtxml.Domain) {
	d.Name = name
	for n := range d.Devices.Disks {
		if f := d.Devices.Disks[n].Source.File; f.File != "" {
			f.File = "/nowhere/" + f.File
		}
	}
	for n := range d.Devices.Interfaces {
		d.Devices.Interfaces[n].Source = &libvirtxml.DomainInterfaceSource{
			Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: "default"},
		}
	}
}

// nobody is the user of the embedded driver if the tests run as root: as root, it would start
// QEMU with KVM.
const nobody = 65534

// scratch creates a directory of the driver's user, with a short path for UNIX sockets.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "domainxml")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// virsh runs commands with the QEMU driver embedded in virsh.
func virsh(t *testing.T, dir, commands string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", "--connect", "qemu:///embed?root="+filepath.Join(dir, "root"))
	cmd.Stdin = strings.NewReader(commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir, "XDG_CACHE_HOME="+dir, "XDG_CONFIG_HOME="+dir,
		"TERM=dumb")
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("virsh: %v\n%s", err, out)
	}
	return string(out) // virsh ends with the status of its last command only
}
