//go:build boot

package testbed

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/internal/testbed/host"
)

func TestMain(m *testing.M) { Main(m) }

func TestModes(t *testing.T) {
	EachMode(t, func(t *testing.T, mode *Mode) {
		if uri := strings.TrimSpace(mode.Virsh(t, "uri")); uri != mode.Connect {
			t.Errorf("virsh is connected to %s, want %s", uri, mode.Connect)
		}
		if got := strings.TrimSpace(mode.Virsh(t, "list", "--all", "--name")); got != "" {
			t.Errorf("the host is not new: it has domains %q", got)
		}
		home := mode.Run(t, "sh", "-c", `cd && pwd && test -w . && id -un`)
		if want := map[string]string{"session": host.User.Home + "\n" + host.User.Name, "system": host.RootHome + "\nroot"}[mode.Name]; strings.TrimSpace(home) != want {
			t.Errorf("home and user are %q, want %q", home, want)
		}
	})
}

func TestSystemNetwork(t *testing.T) {
	if state := System(t).Virsh(t, "net-info", "default"); !strings.Contains(strings.Join(strings.Fields(state), " "), "Active: yes") {
		t.Errorf("network default:\n%s", state)
	}
}

func TestRegistry(t *testing.T) {
	tests := []struct {
		name    string
		options []RegistryOption
		args    []string
	}{
		{"plain", nil, nil},
		{"login", []RegistryOption{WithLogin("user", "secret")}, []string{"--dest-creds", "user:secret"}},
		{"TLS", []RegistryOption{WithTLS()}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			mode := Session(t)
			registry := StartRegistry(t, test.options...)
			mode.Trust(t, registry)
			policy := mode.WriteFile(t, filepath.Join(mode.Dir(t), "policy.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
			layout := emptyLayout(t, mode)
			args := append([]string{"--policy", policy, "copy", "--quiet", "oci:" + layout, "docker://" + registry.Image("some/thing:1")}, test.args...)
			mode.Run(t, "skopeo", args...)
			if log := registry.Log(t); !strings.Contains(log, "/v2/some/thing/manifests/1") {
				t.Errorf("the registry knows of no manifest:\n%s", log)
			}
		})
	}
}

// emptyLayout is an OCI layout with an image of no layers.
func emptyLayout(t *testing.T, mode *Mode) string {
	t.Helper()
	dir := filepath.Join(mode.Dir(t), "layout")
	mode.Run(t, "umoci", "init", "--layout", dir)
	mode.Run(t, "umoci", "new", "--image", dir+":1")
	return dir
}

func TestLeftovers(t *testing.T) {
	mode := Session(t)
	root := mode.Dir(t)
	for _, dir := range []string{"images/sha256-1", "clones"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inventory := TakeInventory(t, mode, root)
	inventory.CheckNothingLeft(t)

	mode.WriteFile(t, filepath.Join(root, "images/sha256-1/disk"), "stays")
	inventory.CheckNothingLeft(t)

	overlay := mode.WriteFile(t, filepath.Join(root, "clones/overlay"), "must go")
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sleep := mode.Command(t.Context(), "sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	mode.Virsh(t, "define", mode.WriteFile(t, filepath.Join(mode.Dir(t), "xml"), `<domain type="qemu"><name>left</name><memory>65536</memory><os><type>hvm</type></os></domain>`))
	t.Cleanup(func() { mode.Virsh(t, "undefine", "left") })
	left, err := inventory.left(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	for _, want := range []string{"file: " + overlay, fmt.Sprintf("port: %d (tcp)", port), fmt.Sprintf("process: %d sleep 60", sleep.Process.Pid), "domain: left"} {
		if !strings.Contains(strings.Join(left, "\n"), want) {
			t.Errorf("not found: %s, only\n%s", want, strings.Join(left, "\n"))
		}
	}
	_ = sleep.Process.Kill()
	_ = sleep.Wait()
}

// The guest boots to SSH, runs a script as its user, and powers off when asked.
func TestGuest(t *testing.T) {
	EachMode(t, func(t *testing.T, mode *Mode) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		machine := boot(ctx, t, mode)
		var client *ssh.Client
		begin := time.Now()
		for client == nil {
			var err error
			if client, err = machine.login(ctx); err != nil && ctx.Err() != nil {
				t.Fatalf("the guest does not answer: %v\nconsole:\n%s", err, machine.console(t))
			}
		}
		defer client.Close()
		t.Logf("SSH after %v", time.Since(begin).Round(10*time.Millisecond))
		session, err := client.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		session.Stdin = strings.NewReader("id -un; touch /builds/a /cache/b; cat < <(echo $BASH_VERSION | cut -c1); exit 7\n")
		output, err := session.Output("bash")
		if exit, ok := err.(*ssh.ExitError); !ok || exit.ExitStatus() != 7 || string(output) != "vagrant\n5\n" {
			t.Errorf("the script wrote %q and ended with %v, want exit status 7", output, err)
		}
		for !strings.Contains(machine.console(t), "guest: ready after") {
			pause(ctx, t, "the guest never gets ready")
		}
		mode.Virsh(t, "shutdown", machine.name)
		for strings.Contains(mode.Virsh(t, "list", "--name"), machine.name) {
			pause(ctx, t, "the guest does not power off")
		}
		if log := machine.console(t); !strings.Contains(log, "Linux version") {
			t.Errorf("the console lacks the kernel's messages:\n%s", log)
		}
	})
}

// pause waits a moment, and fails the test with what is wrong when ctx is done.
func pause(ctx context.Context, t *testing.T, wrong string) {
	t.Helper()
	select {
	case <-ctx.Done():
		t.Fatal(wrong)
	case <-time.After(50 * time.Millisecond):
	}
}

// A machine runs the test guest.
type machine struct {
	mode *Mode
	name string
	log  string
	port int // on 127.0.0.1 in session mode
}

func boot(ctx context.Context, t *testing.T, mode *Mode) *machine {
	t.Helper()
	dir := mode.Dir(t)
	m := &machine{mode: mode, name: "guest-" + mode.Name, log: filepath.Join(dir, "console")}
	disk := filepath.Join(dir, "disk.qcow2")
	mode.Run(t, "qemu-img", "convert", "-O", "qcow2", readable(t, mode, dir, Guest(t)), disk)
	network := `<interface type="network"><source network="default"/><model type="virtio"/></interface>`
	commandLine := ""
	if mode.Name == "session" {
		_, port, err := net.SplitHostPort(freeAddress(t))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Sscan(port, &m.port)
		network = ""
		commandLine = fmt.Sprintf(`<commandline xmlns="http://libvirt.org/schemas/domain/qemu/1.0"><arg value="-netdev"/><arg value="user,id=n,hostfwd=tcp:127.0.0.1:%d-:22"/><arg value="-device"/><arg value="virtio-net-pci,netdev=n,addr=0x1e"/></commandline>`, m.port)
	}
	xml := fmt.Sprintf(`<domain type="qemu"><name>%s</name><memory unit="MiB">384</memory>
<os><type arch="x86_64" machine="q35">hvm</type></os><features><acpi/></features><on_poweroff>destroy</on_poweroff><devices>
<disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="unsafe"/><source file="%s"/><target dev="vda" bus="virtio"/></disk>
<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>
<serial type="file"><source path="%s"/></serial>%s</devices>%s</domain>`, m.name, disk, m.log, network, commandLine)
	mode.Virsh(t, "create", mode.WriteFile(t, filepath.Join(dir, "domain.xml"), xml))
	t.Cleanup(func() {
		_ = mode.Command(context.WithoutCancel(ctx), "virsh", "--connect", mode.Connect, "destroy", m.name).Run()
	})
	return m
}

// readable copies a file that may be in another user's home.
func readable(t *testing.T, mode *Mode, dir, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return mode.WriteFile(t, filepath.Join(dir, "guest"), string(content))
}

func (m *machine) console(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(m.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.ToValidUTF8(content, []byte("?")))
}

// login tries once.
func (m *machine) login(ctx context.Context) (*ssh.Client, error) {
	address := fmt.Sprintf("127.0.0.1:%d", m.port)
	if m.port == 0 {
		output, err := m.mode.Command(ctx, "virsh", "--quiet", "--connect", m.mode.Connect, "domifaddr", m.name).Output()
		if err != nil {
			return nil, err
		}
		field := strings.Fields(string(output))
		if len(field) < 4 {
			time.Sleep(50 * time.Millisecond)
			return nil, fmt.Errorf("no address yet")
		}
		ip, _, _ := strings.Cut(field[3], "/")
		address = ip + ":22"
	}
	time.Sleep(50 * time.Millisecond)
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	config := &ssh.ClientConfig{
		User: "vagrant", Auth: []ssh.AuthMethod{ssh.Password("vagrant")},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	}
	c, channels, requests, err := ssh.NewClientConn(conn, address, config)
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, channels, requests), nil
}
