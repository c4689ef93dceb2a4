package vm

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
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

// passt listens where QEMU looks for it, also where the path is as long as the
// kernel takes one.
func TestPasstListensAtALongPath(t *testing.T) {
	program, err := exec.LookPath("passt")
	if err != nil {
		t.Fatal(err)
	}
	// As root, passt becomes another user, which has no way to a test's directory.
	base, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "sardine-0123abcd-12345678901"
	clones := filepath.Join(base, strings.Repeat("c", socketPathMax-len(passtFiles(name, base+"/", base).socket)-1))
	if err := os.MkdirAll(filepath.Join(clones, name), 0o755); err != nil {
		t.Fatal(err)
	}
	p := passtFiles(name, clones, base)
	if len(p.socket) != socketPathMax {
		t.Fatalf("the path has %d bytes, want %d", len(p.socket), socketPathMax)
	}
	owner := passtOwner{os.Geteuid(), os.Getegid()}
	if owner.uid == 0 {
		owner = passtOwner{65534, 65534}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	if err := p.start(t.Context(), program, owner, port, 22); err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	conn, err := net.Dial("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := p.connected(t.Context()); err != nil {
		t.Error(err)
	}
	if !p.runs() {
		t.Error("the process is not found by its pid file")
	}
	// A driver that was killed before it could note the number.
	if err := os.Remove(p.pidFile); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	conn.SetReadDeadline(time.Now().Add(passtTimeout))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("passt is not ended without its pid file: %v", err)
	}

	longer := passtFiles(name, clones+"c", base)
	if err := longer.start(t.Context(), program, owner, port, 22); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "shorter storage") {
		t.Errorf("a byte more: %v", err)
	}
}

// The number in the pid file may be another process's by now.
func TestStopEndsOnlyItsOwnPasst(t *testing.T) {
	dir := t.TempDir()
	p := passtFiles("name", filepath.Join(dir, "clones"), dir)
	argv := func(socket string) []string { return []string{"-c", "read x", "--socket", socket, "x"} }
	for _, test := range []struct {
		name string
		argv []string
		note string // in the pid file; PID is its number
		ends bool
	}{
		{"passt", argv(p.bound), "PID\n", true},
		{"another", argv(p.bound + "2"), "PID\n", false},
		{"another that is nobody's by the file", argv(p.bound + "2"), "", false},
		{"passt with an empty file", argv(p.bound), "", true},
		{"passt with a damaged file", argv(p.bound), "x", true},
		{"passt with the number of every process", argv(p.bound), "-1", true},
		{"passt with the number of init", argv(p.bound), "1", true},
		{"passt with the number of its own group", argv(p.bound), "0", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("sh", test.argv...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			note := strings.ReplaceAll(test.note, "PID", strconv.Itoa(cmd.Process.Pid))
			if err := os.WriteFile(p.pidFile, []byte(note), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := p.stop(); err != nil {
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
