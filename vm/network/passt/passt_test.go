package passt

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

func TestHasConnection(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	const path = "/run/clones/sardine-1 2/passt/socket"
	for _, test := range []struct {
		name, table string
		want        bool
	}{
		{"nothing", head, false},
		{"listens", head + "0000000000000000: 00000002 00000000 00010000 0001 01 40000 " + path + "\n", false},
		{"connected", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001 " + path + "\n", true},
		{"another's", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001 " + path + "2\n", false},
		{"without a path", head + "0000000000000000: 00000003 00000000 00000000 0001 03 40001\n", false},
	} {
		if got := hasConnection(test.table, path); got != test.want {
			t.Errorf("%s: got %t", test.name, got)
		}
	}
}

// passt listens on the socket that QEMU opens, also if its path has the maximum length.
func TestPasstListensAtALongPath(t *testing.T) {
	program, err := exec.LookPath("passt")
	if err != nil {
		t.Fatal(err)
	}
	// Started by root, passt becomes another user, which cannot search a test's directory.
	base, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "sardine-0123abcd-12345678901"
	h := virttest.Open(t)
	clones := filepath.Join(base, strings.Repeat("c", socketPathMax-len(New(h, name, base+"/", base).Socket)-1))
	if err := os.MkdirAll(filepath.Join(clones, name), 0o755); err != nil {
		t.Fatal(err)
	}
	p := New(h, name, clones, base)
	if len(p.Socket) != socketPathMax {
		t.Fatalf("the path has %d bytes, want %d", len(p.Socket), socketPathMax)
	}
	owner := virt.User{UID: os.Geteuid(), GID: os.Getegid()}
	if owner.UID == 0 {
		owner = virt.User{UID: 65534, GID: 65534}
	}
	p.owner = func(context.Context) (virt.User, error) { return owner, nil }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	if err := p.Start(t.Context(), program, owner, port, 22); err != nil {
		t.Fatal(err)
	}
	defer p.Stop(context.WithoutCancel(t.Context()))
	conn, err := net.Dial("unix", p.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := p.Connected(t.Context()); err != nil {
		t.Error(err)
	}
	if !p.Runs() {
		t.Error("the process is not found by its note")
	}
	// The driver was killed before it wrote the note.
	if err := os.Remove(p.note); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(timeout))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("passt is not ended without its note: %v", err)
	}

	longer := New(h, name, clones+"c", base)
	if err := longer.Start(t.Context(), program, owner, port, 22); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "shorter storage") {
		t.Errorf("a byte more: %v", err)
	}
}

// A passt is identified by its PID, start time, user and the absolute path on its command line.
// Another process can have any of these alone.
func TestStopEndsOnlyItsOwnPasst(t *testing.T) {
	dir := t.TempDir()
	p := New(virttest.Open(t), "name", filepath.Join(dir, "clones"), dir)
	// A machine with the same name in the storage of another user.
	stranger := New(virttest.Open(t), "name", filepath.Join(dir, "others"), dir)
	self := virt.User{UID: os.Geteuid(), GID: os.Getegid()}
	right := func(note *note) string { return noteText(t, *note) }
	for _, test := range []struct {
		name    string
		program string // empty: passt
		of      *Passt
		note    func(seen *note) string // what is noted of the process; nil: nothing
		owner   virt.User               // as whom ours runs
		ends    bool
	}{
		{"noted", "", p, right, self, true},
		{"noted, of a build for one processor", "passt.avx2", p, right, self, true},
		{"noted, and its number is another's now", "", p, func(n *note) string { n.Start--; return noteText(t, *n) }, self, false},
		{"noted, and its number is another user's now", "", p, func(n *note) string { n.UID++; return noteText(t, *n) }, self, false},
		{"noted, and its number is that of another storage's", "", stranger, func(n *note) string { n.Pid = p.pid; return noteText(t, *n) }, self, false},
		{"not noted", "", p, nil, self, true},
		{"not noted, of another user", "", p, nil, virt.User{UID: self.UID + 1, GID: self.GID}, false},
		{"not noted, of another storage", "", stranger, nil, self, false},
		{"not noted, another program", "editor", p, nil, self, false},
		{"empty note", "", p, func(*note) string { return "" }, self, true},
		{"damaged note", "", p, func(*note) string { return "{" }, self, true},
		{"note of every process", "", p, func(n *note) string { n.PID = -1; return noteText(t, *n) }, self, true},
		{"note of init", "", p, func(n *note) string { n.PID = 1; return noteText(t, *n) }, self, true},
		{"note of its own group", "", p, func(n *note) string { n.PID = 0; return noteText(t, *n) }, self, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.owner = func(context.Context) (virt.User, error) { return test.owner, nil }
			cmd := exec.Command("sh", "-c", "read x", "--socket", test.of.bound, "--pid", test.of.pid, "x")
			cmd.Args[0] = cmp.Or(test.program, "passt")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			os.Remove(p.note)
			seen := imitation(t, cmd)
			if test.note != nil {
				if err := os.WriteFile(p.note, []byte(test.note(seen)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if !test.ends {
				stdin.Close() // its end by itself
			}
			err = cmd.Wait()
			stdin.Close()
			if killed := err != nil && err.Error() == "signal: terminated"; killed != test.ends {
				t.Errorf("the process ended with %v", err)
			}
		})
	}
}

// imitation starts a process that looks like passt and returns what /proc shows of it. Its
// command line appears a moment after the start. (Other programs have no pid file.)
func imitation(t *testing.T, cmd *exec.Cmd) *note {
	t.Helper()
	for range 1000 {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > 0 {
			seen, _ := lookAt(cmd.Process.Pid)
			return seen
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the process has no command line")
	return nil
}

func noteText(t *testing.T, note note) string {
	t.Helper()
	text, err := json.Marshal(note)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestStartInStat(t *testing.T) {
	const rest = " S 1 7 7 0 -1 4194560 105 0 0 0 0 0 0 0 20 0 1 0 123456 2699264 0"
	for _, name := range []string{"passt.avx2", "a) S 1 2 (b", "", "with space"} {
		if start, err := startIn("7 (" + name + ")" + rest); err != nil || start != 123456 {
			t.Errorf("%q started at %d, %v", name, start, err)
		}
	}
	for _, bad := range []string{"", "7", "7 (x)", "7 (x) S 1"} {
		if start, err := startIn(bad); err == nil {
			t.Errorf("%q: %d", bad, start)
		}
	}
}
