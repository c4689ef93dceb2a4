package admission

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A State is what the files of the admissions and the kernel know of the queue.
type State struct {
	// Starting is the memory, in bytes, of the machines that were admitted and that their
	// processes are starting, by name. libvirt may list them already.
	Starting map[string]uint64
	// First is the name of the machine that waits for room; empty if none does.
	First string
	// Behind is the number of machines that wait behind it.
	Behind int
}

// Look returns the state of the admissions in dir. It changes nothing.
func Look(dir string) (State, error) {
	state := State{Starting: make(map[string]uint64)}
	err := reservations(filepath.Join(dir, reservationDir)).each(func(name string, e entry) error {
		if e.held {
			state.Starting[name] = e.memory
		}
		return nil
	})
	if err != nil {
		return state, err
	}
	lock, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil
	}
	if err != nil {
		return state, fmt.Errorf("look at the queue for room: %w", err)
	}
	defer lock.Close()
	// A name in the file counts only with the lock: a process that died leaves it there.
	held := errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	text := make([]byte, 256)
	n, _ := lock.Read(text)
	if !held || n == 0 {
		return state, nil
	}
	state.First = strings.TrimSpace(string(text[:n]))
	state.Behind, err = waiters(lock)
	return state, err
}

// waiters counts the processes that wait for the lock of a file. /proc/locks identifies
// files by numbers that can differ from those of stat (on btrfs), so the open files of the
// process decide.
func waiters(lock *os.File) (int, error) {
	is, err := lock.Stat()
	if err != nil {
		return 0, err
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0, fmt.Errorf("look at the queue for room: %w", err)
	}
	defer locks.Close()
	count := 0
	// Such as: 7: -> FLOCK  ADVISORY  WRITE 4711 fe:01:131090 0 EOF
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 || fields[1] != "->" || fields[2] != "FLOCK" {
			continue
		}
		if pid, err := strconv.Atoi(fields[5]); err == nil && hasOpen(pid, is) {
			count++
		}
	}
	return count, nil
}

// hasOpen reports whether a process has opened the file. It is false for processes of other
// users, unless this one is root.
func hasOpen(pid int, is fs.FileInfo) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if file, err := os.Stat(filepath.Join(dir, entry.Name())); err == nil && os.SameFile(file, is) {
			return true
		}
	}
	return false
}
