package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A BlockedError says that a user cannot pass through a directory. QEMU, which the system's
// libvirt runs as a user of its own, then cannot open the files below it.
type BlockedError struct {
	// Dir is the directory, and Path what lies below it.
	Dir, Path string
	// User is the name of the user, or its number if it has none.
	User string
}

func (e *BlockedError) Error() string {
	return fmt.Sprintf("QEMU runs as the user %s, which cannot enter %s, and so not open what is in %s (run: %s; or choose another storage)",
		e.User, e.Dir, e.Path, e.Command())
}

// Command lets the user pass through the directory, and others too if the host has no setfacl.
func (e *BlockedError) Command() string {
	if _, err := exec.LookPath("setfacl"); err != nil {
		return "chmod o+x " + e.Dir
	}
	return fmt.Sprintf("setfacl -m u:%s:x %s", e.User, e.Dir)
}

// Unreachable returns the first directory on the way to path that the user cannot enter; nil
// if there is none. Only root can ask the kernel; for others it judges by mode and owner,
// and takes a directory with access control lists for reachable.
func Unreachable(path string, uid, gid int) *BlockedError {
	name, groups := strconv.Itoa(uid), []uint32{uint32(gid)}
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
		ids, _ := u.GroupIds()
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				groups = append(groups, uint32(n))
			}
		}
	}
	var dirs []string // from the root down
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		dirs = append([]string{dir}, dirs...)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	enter := func(dir string) error { return judge(dir, uint32(uid), groups) }
	var dir string
	if os.Geteuid() == 0 {
		dir = firstBlockedAs(uint32(uid), uint32(gid), groups, dirs)
	} else {
		dir = firstBlocked(dirs, enter)
	}
	if dir == "" {
		return nil
	}
	return &BlockedError{Dir: dir, Path: path, User: name}
}

// Blocked is [Unreachable] for the directories of a machine: that of its overlays, and those of
// the disks below them.
func Blocked(overlays string, disks []Disk, uid, gid int) *BlockedError {
	dirs := []string{overlays}
	for _, d := range disks {
		if dir := filepath.Dir(d.Path); dir != dirs[len(dirs)-1] {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		if blocked := Unreachable(dir, uid, gid); blocked != nil {
			return blocked
		}
	}
	return nil
}

// firstBlocked returns the first directory that cannot be entered. One that does not exist
// ends the way: the driver creates those below it.
func firstBlocked(dirs []string, enter func(dir string) error) string {
	for _, dir := range dirs {
		switch err := enter(dir); {
		case errors.Is(err, syscall.EACCES):
			return dir
		case err != nil:
			return ""
		}
	}
	return ""
}

// judge judges by mode and owner whether a user can enter a directory.
func judge(dir string, uid uint32, groups []uint32) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if n, err := unix.Getxattr(dir, "system.posix_acl_access", nil); !ok || err == nil && n > 0 || uid == 0 {
		return nil
	}
	bit := uint32(unix.S_IXOTH)
	for _, group := range groups {
		if group == stat.Gid {
			bit = unix.S_IXGRP
		}
	}
	if uid == stat.Uid {
		bit = unix.S_IXUSR
	}
	if stat.Mode&bit == 0 {
		return syscall.EACCES
	}
	return nil
}

// firstBlockedAs is [firstBlocked] as another user. Its thread becomes that user, as the kernel
// knows users by thread, and ends with it.
func firstBlockedAs(uid, gid uint32, groups []uint32, dirs []string) string {
	found := make(chan string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		_, _, err := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
		if err == 0 {
			_, _, err = unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		}
		if err == 0 {
			_, _, err = unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		}
		if err != 0 { // in a container, perhaps
			found <- ""
			return
		}
		found <- firstBlocked(dirs, func(dir string) error { return unix.Access(dir, unix.X_OK) })
	}()
	return <-found
}
