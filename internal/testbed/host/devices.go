package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// makeDevices makes a /dev with what libvirt and QEMU need. /dev/kvm is in it
// only if QEMU's user may open it: otherwise libvirt 9.0, as root, finds its
// cached capabilities outdated again and again, and probes QEMU for 12 s whenever
// it starts a machine.
func makeDevices() error {
	const dev = "/run/dev"
	if err := os.Mkdir(dev, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range []string{"net", "pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			return err
		}
	}
	nodes := []string{"null", "zero", "full", "random", "urandom", "tty", "net/tun"}
	if kvmIsUsable() {
		nodes = append(nodes, "kvm", "vhost-net")
	}
	for _, node := range nodes {
		if err := copyNode(filepath.Join("/dev", node), filepath.Join(dev, node)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", 0, "mode=1777"); err != nil {
		return err
	}
	if err := unix.Unmount("/dev", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount /dev: %w", err)
	}
	if err := unix.Mount(dev, "/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move to /dev: %w", err)
	}
	return os.Remove(dev)
}

// copyNode makes a device node like another. A device that the machine lacks is
// left out.
func copyNode(from, to string) error {
	var stat unix.Stat_t
	err := unix.Stat(from, &stat)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if err := unix.Mknod(to, stat.Mode, int(stat.Rdev)); err != nil {
		return fmt.Errorf("make node %s: %w", to, err)
	}
	// The umask does not count here.
	if err := os.Chmod(to, fs.FileMode(stat.Mode&0o777)); err != nil {
		return err
	}
	return os.Chown(to, int(stat.Uid), int(stat.Gid))
}

// kvmIsUsable says whether the user as whom libvirt runs QEMU may open /dev/kvm:
// everybody, or the group kvm, to which Debian adds that user.
func kvmIsUsable() bool {
	var stat unix.Stat_t
	if unix.Stat("/dev/kvm", &stat) != nil {
		return false
	}
	group, err := user.LookupGroup("kvm")
	return stat.Mode&0o006 == 0o006 ||
		err == nil && group.Gid == strconv.Itoa(int(stat.Gid)) && stat.Mode&0o060 == 0o060
}
