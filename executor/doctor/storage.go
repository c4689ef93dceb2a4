package doctor

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/virt"
)

const lockSuffix = metrics.LockSuffix

// lowSpace is the free space, in bytes, below which doctor warns.
const lowSpace = 10 << 30

// socketPathMax is the maximum length of a socket path on Linux (sockaddr_un.sun_path).
const socketPathMax = 107

// longestMachine is the name of a machine with a job ID as long as they get.
const longestMachine = "sardine-00000000-99999999999"

// storage checks free space and permissions.
func (d *doctor) storage(dirs config.Dirs) {
	if _, err := store.Open(dirs.Store); err != nil {
		d.add("storage", Error, "%v", err)
		return
	}
	for _, dir := range []string{dirs.Store, filepath.Dir(dirs.Overlays)} {
		var fs unix.Statfs_t
		if err := unix.Access(dir, unix.W_OK); err != nil {
			d.advise("storage", Error, fmt.Sprintf("chown %s %s", quote(currentUser()), quote(dir)), "this user cannot write to %s: %v", dir, err)
			return
		}
		if err := unix.Statfs(dir, &fs); err != nil {
			d.add("storage", Warning, "cannot find out the free space in %s: %v", dir, err)
			return
		}
		free := fs.Bavail * uint64(fs.Bsize)
		level, advice, command := OK, "", ""
		reserve := space.Reserve(d.settings.Defaults.StorageReserve).Of(int64(fs.Blocks) * fs.Bsize)
		switch {
		case dir == dirs.Store && free < uint64(reserve):
			level, advice = Warning, fmt.Sprintf(": no image can be pulled, for storage_reserve is %s here", units.BytesSize(float64(reserve)))
		case free < lowSpace:
			level, advice = Warning, ": too little for images and overlays"
		}
		if level != OK {
			command = "gitlab-sardine-executor prune"
		}
		d.advise("storage", level, command, "%s free in %s%s", units.BytesSize(float64(free)), dir, advice)
		if dirs.Store == filepath.Dir(dirs.Overlays) {
			return
		}
	}
}

// reach checks whether QEMU can open what is in the storage: with qemu:///system it runs as
// a user of its own.
func (d *doctor) reach(ctx context.Context, host *virt.Host, dirs config.Dirs) {
	if !host.System() {
		return
	}
	qemu, err := host.QEMUUser(ctx)
	if err != nil {
		d.add("storage", Warning, "%v", err)
		return
	}
	d.reachAs(qemu, dirs)
}

func (d *doctor) reachAs(qemu syscall.Credential, dirs config.Dirs) {
	told := make(map[string]bool)
	for _, dir := range []string{dirs.Store, dirs.Overlays} {
		blocked := disk.Unreachable(dir, int(qemu.Uid), int(qemu.Gid))
		if blocked == nil || told[blocked.Dir] {
			continue
		}
		told[blocked.Dir] = true
		d.advise("storage", Error, blocked.Command(), "%v", blocked)
	}
}

// sockets checks whether the paths of sockets are short enough for the kernel.
func (d *doctor) sockets(host *virt.Host) {
	if host.System() {
		return
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return
	}
	if path := sessionSocket(base); len(path) > socketPathMax {
		d.add("sockets", Error, "the path of a socket may have %d bytes, and libvirt's for a machine has %d (%s): set XDG_CONFIG_HOME to a shorter directory for libvirtd and the runner, or use a user with a shorter home",
			socketPathMax, len(path), path)
	}
}

// sessionSocket is the path of the socket of QEMU's monitor, which the user's own libvirtd
// binds. libvirt shortens names of machines to 20 bytes (virDomainDefGetShortName). The path
// of the guest agent's channel is longer, but the driver leaves that out if need be
// (DropLongChannels in vm/domain).
func sessionSocket(configHome string) string {
	return filepath.Join(configHome, "libvirt/qemu/lib", "domain-999999-"+longestMachine[:20], "monitor.sock")
}

// currentUser is the name of this user.
func currentUser() string { return userName(os.Geteuid()) }

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

// quote makes text one word of a shell.
func quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@,=%", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
