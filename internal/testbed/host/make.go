package host

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// TempDir is the directory for temporary files of this host: in memory, and
// short, since the paths of UNIX sockets are limited to 107 bytes.
const TempDir = "/run/tmp"

// ScratchDir is the directory for temporary files of programs under test, apart
// from those of the tests themselves: what is found there is a leftover.
const ScratchDir = "/run/scratch"

// RootHome is root's $HOME on this host.
const RootHome = "/run/home/root"

// User is the ordinary user of this host. It exists in no other.
var User = struct {
	Name       string
	ID         uint32 // of user and group
	Home       string
	RuntimeDir string // $XDG_RUNTIME_DIR
}{"sardine", 61999, "/run/home/sardine", "/run/user/61999"}

// makeHost makes what the package comment promises. It runs as process 1.
func makeHost() error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"mount", mountPrivate},
		{"make directories", makeDirectories},
		{"make devices", makeDevices},
		{"copy settings", ownSettings},
		{"add user", addUser},
		{"set up libvirt", setUpLibvirt},
		{"set up network", setUpNetwork},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

func mountPrivate() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	// A new sysfs shows the devices of this network namespace. The old one goes,
	// and with it the machine's cgroups, where libvirt would make its own.
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	mounts := []struct{ kind, target, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"tmpfs", "/run", "mode=0755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("%s on %s: %w", m.kind, m.target, err)
		}
	}
	// Not every machine has every one of these.
	for _, dir := range []string{"/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/var/lib/gitlab-sardine-executor", "/etc/gitlab-sardine-executor"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", dir, err)
		}
	}
	return nil
}

func makeDirectories() error {
	for _, dir := range []struct {
		path  string
		mode  fs.FileMode
		owner uint32
	}{
		{TempDir, 0o777 | fs.ModeSticky, 0},
		{ScratchDir, 0o777 | fs.ModeSticky, 0},
		{"/run/lock", 0o777 | fs.ModeSticky, 0},
		{RootHome, 0o700, 0},
		{User.Home, 0o755, User.ID},
		{User.RuntimeDir, 0o700, User.ID},
	} {
		if err := os.MkdirAll(dir.path, 0o755); err != nil {
			return err
		}
		// The umask does not count here.
		if err := os.Chmod(dir.path, dir.mode); err != nil {
			return err
		}
		if err := os.Chown(dir.path, int(dir.owner), int(dir.owner)); err != nil {
			return err
		}
	}
	return nil
}

// ownSettings gives the host an /etc of its own, a copy. Covering single files
// would not do: a user who is added to the machine meanwhile replaces its passwd,
// and what covered it here is gone.
func ownSettings() error {
	const copied = "/run/etc"
	if output, err := exec.Command("cp", "-a", "/etc", copied).CombinedOutput(); err != nil {
		return fmt.Errorf("copy /etc: %w: %s", err, bytes.TrimSpace(output))
	}
	return unix.Mount(copied, "/etc", "", unix.MS_BIND, "")
}

// addUser adds [User] to passwd and group.
func addUser() error {
	id := strconv.Itoa(int(User.ID))
	for path, line := range map[string]string{
		"/etc/passwd": strings.Join([]string{User.Name, "x", id, id, "", User.Home, "/bin/sh"}, ":"),
		"/etc/group":  strings.Join([]string{User.Name, "x", id, ""}, ":"),
	} {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content = append(bytes.TrimRight(content, "\n"), "\n"+line+"\n"...)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The security driver is off because AppArmor's profiles belong to the whole
// machine.
const qemuConf = "security_driver = \"none\"\n"

// setUpLibvirt gives libvirt settings of this host: its own defaults, the
// network that comes with it, and the network filters that a package installed.
func setUpLibvirt() error {
	const settings, installed = "/etc/libvirt", "/run/libvirt-installed"
	if _, err := os.Stat(settings); err != nil {
		return nil // no libvirt on this machine
	}
	if err := os.MkdirAll(installed, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(settings, installed, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", settings, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(settings, "qemu.conf"), []byte(qemuConf), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(installed, "nwfilter")); err == nil {
		if err := os.CopyFS(filepath.Join(settings, "nwfilter"), os.DirFS(filepath.Join(installed, "nwfilter"))); err != nil {
			return err
		}
	}
	return unix.Unmount(installed, 0)
}

// Uplink is the address of this host on the interface with the default route.
const Uplink = "192.0.2.2"

// setUpNetwork brings up the loopback device, and one with a default route that
// leads nowhere: passt copies the addresses of the interface that has one. It is
// a bridge without ports, since libvirt's networks need bridges from the kernel,
// and not every kernel has dummy devices. The addresses are those for
// documentation (RFC 5737, RFC 3849).
func setUpNetwork() error {
	const batch = `link set lo up
link add uplink type bridge
addr add ` + Uplink + `/24 dev uplink
addr add 2001:db8::2/64 dev uplink nodad
link set uplink up
route add default via 192.0.2.1 dev uplink
`
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, bytes.TrimSpace(output))
	}
	return nil
}
