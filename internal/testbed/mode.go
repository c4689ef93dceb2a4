package testbed

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gitlab-sardine-executor/internal/testbed/gitlab"
	"gitlab-sardine-executor/internal/testbed/host"
)

var modeFlag = flag.String("mode", "", "test only this mode: session or system")

// A Mode is one of the two ways to run the program.
type Mode struct {
	// Name is "session" or "system".
	Name string
	// Connect is the libvirt URI.
	Connect string
	// Network is the program's setting for it: the default in this mode.
	Network string

	credential *syscall.Credential // nil: root
	home       string
	env        []string // besides HOME
}

var (
	session = &Mode{
		Name: "session", Connect: "qemu:///session", Network: "user",
		credential: &syscall.Credential{Uid: host.User.ID, Gid: host.User.ID},
		home:       host.User.Home,
		env:        []string{"XDG_RUNTIME_DIR=" + host.User.RuntimeDir, "USER=" + host.User.Name, "LOGNAME=" + host.User.Name},
	}
	system = &Mode{
		Name: "system", Connect: "qemu:///system", Network: "default",
		home: host.RootHome, env: []string{"USER=root", "LOGNAME=root"},
	}
)

// Session is the mode of an ordinary user: a libvirtd of the user's own, which
// starts by itself, and no privileges.
func Session(t testing.TB) *Mode {
	t.Helper()
	mustBeInside(t)
	return session
}

// System is the mode of root: the system's libvirtd, and its network "default".
func System(t testing.TB) *Mode {
	t.Helper()
	mustBeInside(t)
	if err := host.StartLibvirtd(); err != nil {
		t.Fatal(err)
	}
	return system
}

func mustBeInside(t testing.TB) {
	t.Helper()
	if !host.Inside() {
		t.Fatal("this test needs a host of its own: its package's TestMain must call testbed.Main")
	}
}

// EachMode runs a test in both modes, or in the one that the flag -mode names.
func EachMode(t *testing.T, test func(t *testing.T, mode *Mode)) {
	t.Helper()
	InMode(t, "session", test)
	InMode(t, "system", test)
}

// InMode runs a test in the mode of that name, unless the flag -mode names the other one.
func InMode(t *testing.T, name string, test func(t *testing.T, mode *Mode)) {
	t.Helper()
	of := map[string]func(testing.TB) *Mode{"session": Session, "system": System}[name]
	if *modeFlag == "" || *modeFlag == name {
		t.Run(name, func(t *testing.T) { test(t, of(t)) })
	}
}

// MostlyIn runs a test in the mode of that name, and with both in the other as well: the code
// depends little on the mode.
func MostlyIn(t *testing.T, name string, both bool, test func(t *testing.T, mode *Mode)) {
	t.Helper()
	if both {
		EachMode(t, test)
		return
	}
	InMode(t, name, test)
}

// Env is the environment of the mode's user, without anything of the machine's.
func (m *Mode) Env() []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + m.home, "TMPDIR=" + host.TempDir, "LC_ALL=C.UTF-8"}, m.env...)
}

// Command is a command of the mode's user, in a process group of its own, which
// is killed when ctx is done.
func (m *Mode) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = m.Env()
	cmd.Dir = host.TempDir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: m.credential, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// Run runs a command of the mode's user and returns its standard output. It is
// fatal if it fails.
func (m *Mode) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	// It is of use in cleanups too, where the test's context is done.
	cmd := m.Command(context.WithoutCancel(t.Context()), name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, output, stderr.String())
	}
	return string(output)
}

// Virsh is virsh with the mode's connection.
func (m *Mode) Virsh(t testing.TB, args ...string) string {
	t.Helper()
	return m.Run(t, "virsh", append([]string{"--quiet", "--connect", m.Connect}, args...)...)
}

// Dir makes an empty directory of the mode's user, gone after the test. Other
// than [testing.T.TempDir], QEMU's user can reach what is in it.
func (m *Mode) Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(host.TempDir, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.own(t, dir)
	return dir
}

// WriteFile writes a file of the mode's user.
func (m *Mode) WriteFile(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	m.own(t, path)
	return path
}

func (m *Mode) own(t testing.TB, path string) {
	t.Helper()
	if m.credential == nil {
		return
	}
	if err := os.Chown(path, int(m.credential.Uid), int(m.credential.Gid)); err != nil {
		t.Fatal(err)
	}
}

// Runner is a GitLab Runner of the mode's user with a driver; args come before
// the stage's name.
func (m *Mode) Runner(t testing.TB, driver string, args ...string) gitlab.Runner {
	t.Helper()
	return gitlab.Runner{
		Exec: driver, Args: args,
		Env: m.Env(), Credential: m.credential, Dir: m.Dir(t),
	}
}

// Trust makes containers/image, used by the mode's user, accept the registry
// until the test's end: without TLS (containers-registries.conf.d(5)), or with
// its certificate (containers-certs.d(5)).
func (m *Mode) Trust(t testing.TB, r *Registry) {
	t.Helper()
	name, source := filepath.Join(m.configDir(t, "containers", "registries.conf.d"), r.Host+".conf"), r.RegistriesConf
	if r.CA != "" {
		name, source = filepath.Join(m.configDir(t, "containers", "certs.d", r.Host), "ca.crt"), r.CA
	}
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(name) })
	m.WriteFile(t, name, string(content))
}

// configDir is a directory in the user's ~/.config.
func (m *Mode) configDir(t testing.TB, elem ...string) string {
	t.Helper()
	dir := m.home
	for _, name := range append([]string{".config"}, elem...) {
		dir = filepath.Join(dir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m.own(t, dir)
	}
	return dir
}
