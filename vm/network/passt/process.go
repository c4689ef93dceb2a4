package passt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"

	"gitlab-sardine-executor/vm/errdefs"
)

// A note identifies the passt of a machine among all processes of the host, also if its PID
// was reused.
type note struct {
	PID   int
	Start uint64 // when it started, in clock ticks since the host booted (proc(5))
	UID   int    // user that it runs as
	Pid   string // path of its pid file, which is on its command line
	// Socket is the inode of its connection with QEMU; 0 if it is not known.
	Socket uint32 `json:",omitempty"`

	path string
}

// notePath returns the path of the note in a job directory.
func notePath(jobDir string) string { return filepath.Join(jobDir, "passt.json") }

// readNote reads a note; the result is nil if there is none.
func readNote(path string) (*note, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find passt: %w", err)
	}
	known := &note{path: path}
	if err := json.Unmarshal(text, known); err != nil || known.PID <= 1 || known.Start == 0 || known.Pid == "" {
		return nil, fmt.Errorf("find passt: %s names no process: %.100q", path, text)
	}
	return known, nil
}

func (n *note) write() error {
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return renameio.WriteFile(n.path, text, 0o600)
}

// runs reports whether the process still runs.
func (n *note) runs() bool {
	process := n.process()
	if process != nil {
		process.Release()
	}
	return process != nil
}

// process returns the process of the note; nil if it has ended.
func (n *note) process() *os.Process {
	// The handle is opened before the check, and refers to this process also if its PID is
	// reused.
	process, err := os.FindProcess(n.PID)
	if err != nil {
		return nil
	}
	seen, err := lookAt(n.PID)
	if err != nil || seen.Start != n.Start || seen.UID != n.UID || seen.Pid != n.Pid {
		process.Release()
		return nil
	}
	return process
}

// lookAt reads from /proc what identifies a passt process. All users can read its command
// line, its user and its start time; passt hides the rest (prctl(2), PR_SET_DUMPABLE).
func lookAt(pid int) (*note, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	seen := &note{PID: pid, Pid: pidFileOf(cmdline)}
	if seen.Pid == "" {
		return nil, fmt.Errorf("process %d is not a passt of this program", pid)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return nil, err
	}
	if seen.UID, err = uidIn(string(status)); err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil, err
	}
	if seen.Start, err = startIn(string(stat)); err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return seen, nil
}

// pidFileOf returns the path of the pid file on the command line of a passt; empty for other
// programs.
func pidFileOf(cmdline []byte) string {
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "passt") { // passt.avx2
		return ""
	}
	for i := 1; i+1 < len(args); i++ {
		if args[i] == "--pid" {
			return args[i+1]
		}
	}
	return ""
}

// uidIn returns the effective user in /proc/PID/status.
func uidIn(status string) (int, error) {
	for line := range strings.Lines(status) {
		if field := strings.Fields(line); len(field) > 2 && field[0] == "Uid:" {
			return strconv.Atoi(field[2])
		}
	}
	return 0, errors.New("its status names no user")
}

// startIn returns the start time in /proc/PID/stat: field 22. Field 2, the name of the program
// in parentheses, can contain anything.
func startIn(stat string) (uint64, error) {
	field := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(field) < 20 {
		return 0, fmt.Errorf("its stat has %d fields after the name", len(field))
	}
	return strconv.ParseUint(field[19], 10, 64)
}

// writeNote records the background process of passt, which its pid file names.
func (p *Passt) writeNote(owner syscall.Credential) error {
	text, err := os.ReadFile(p.pid)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	// The user of QEMU could have written the file.
	seen, err := lookAt(pid)
	switch {
	case err != nil:
		return err
	case seen.Pid != p.pid || seen.UID != int(owner.Uid):
		return fmt.Errorf("process %d of user %d is not the one that was started", pid, seen.UID)
	}
	seen.path = p.note
	return seen.write()
}

// Stop ends passt and removes its directory. If there is no note, because the process that
// started it was killed or the disk was full, it searches all processes.
func (p *Passt) Stop(ctx context.Context) error {
	return errors.Join(p.end(ctx), p.removeDirs(ctx))
}

func (p *Passt) end(ctx context.Context) error {
	known, _ := readNote(p.note)
	if known == nil {
		var err error
		if known, err = p.search(ctx); known == nil {
			return err
		}
	}
	process := known.process()
	if process == nil {
		return nil
	}
	defer process.Release()
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop passt (process %d): %w", process.Pid, err)
	}
	return nil
}

// removeDirs removes the directories of this passt: one, unless its start was interrupted. All
// users can create a directory of such a name; those of others stay.
func (p *Passt) removeDirs(ctx context.Context) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("find the directory for the socket of passt: %w", err)
	}
	var failed []error
	for _, entry := range entries {
		path := filepath.Join(parent, entry.Name())
		if !strings.HasPrefix(path, p.prefix) || !entry.IsDir() {
			continue
		}
		owner, err := p.owner(ctx)
		if err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid == int(owner.Uid) || uid == os.Geteuid() {
			failed = append(failed, os.RemoveAll(path))
		}
	}
	return errors.Join(failed...)
}

// Runs reports whether passt still runs, or its state is not known.
func (p *Passt) Runs() bool {
	known, err := readNote(p.note)
	return err != nil || known != nil && known.runs()
}

// Check makes sure that the passt of the machine with that job directory runs. It returns nil
// if the machine has no passt. The error is [errdefs.ErrNetworkEnded], or that its state is not known.
func Check(jobDir string) error {
	known, err := readNote(notePath(jobDir))
	if err == nil && known != nil && !known.runs() {
		return errdefs.ErrNetworkEnded
	}
	return err
}

// StalledIn returns [Passt.Stalled] of the machine with that job directory; nil if it has no
// passt.
func StalledIn(jobDir string) func() bool {
	known, err := readNote(notePath(jobDir))
	if err != nil || known == nil {
		return nil
	}
	q := &queue{inode: known.Socket}
	return q.stalled
}

// search searches all processes for this passt; the result is nil if there is none.
func (p *Passt) search(ctx context.Context) (*note, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find passt: %w", err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || !bytes.Contains(cmdline, []byte(p.prefix)) {
			continue
		}
		seen, err := lookAt(pid)
		if err != nil || !strings.HasPrefix(seen.Pid, p.prefix) {
			continue
		}
		// Another user can start a process that looks like it. Only now ask libvirt for the
		// user of QEMU.
		owner, err := p.owner(ctx)
		if err != nil {
			return nil, fmt.Errorf("find passt: %w", err)
		}
		if seen.UID == int(owner.Uid) {
			return seen, nil
		}
	}
	return nil, nil
}
