//go:build boot

package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A process is one that runs on the test's host.
type process struct {
	pid  int
	args []string
	uid  uint32
}

// processes are those whose command line matches.
func processes(match func(p process) bool) []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []process
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue // gone, or a zombie
		}
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		p := process{pid, strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00"), info.Sys().(*syscall.Stat_t).Uid}
		if match(p) {
			found = append(found, p)
		}
	}
	return found
}

// isProgram says whether a process runs the program of that name.
func (p process) isProgram(name string) bool { return filepath.Base(p.args[0]) == name }

// mentions says whether text stands on the command line.
func (p process) mentions(text string) bool {
	return slices.ContainsFunc(p.args, func(arg string) bool { return strings.Contains(arg, text) })
}

// one is the only process that matches. It is fatal if there is none, or more.
func one(t testing.TB, what string, match func(p process) bool) process {
	t.Helper()
	found := processes(match)
	if len(found) != 1 {
		t.Fatalf("%d processes are the %s, want 1: %v", len(found), what, found)
	}
	return found[0]
}

// signal sends a signal; that the process is gone is no error.
func (p process) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("send %v to %v: %v", signal, p.args, err)
	}
}

// state is the letter of /proc/PID/stat, 0 if the process is gone.
func (p process) state() byte {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "stat"))
	if err != nil {
		return 0
	}
	// The name, in parentheses, can hold anything.
	return stat[bytes.LastIndexByte(stat, ')')+2]
}

// ended says whether the process runs no more.
func (p process) ended() bool { s := p.state(); return s == 0 || s == 'Z' }

// opened says whether the process has a file open.
func (p process) opened(path string) bool {
	handles, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(p.pid), "fd", "*"))
	return slices.ContainsFunc(handles, func(handle string) bool {
		target, err := os.Readlink(handle)
		return err == nil && target == path
	})
}

// pending says whether a signal waits for the process to take it.
func (p process) pending(signal syscall.Signal) bool {
	status, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "status"))
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "ShdPnd:"); ok {
			bits, _ := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return bits>>(signal-1)&1 == 1
		}
	}
	return false
}

// until waits until something is so.
func until(t testing.TB, what string, so func() bool) {
	t.Helper()
	ctx := deadline(t)
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("wait until %s: %v", what, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
