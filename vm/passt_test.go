package vm

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
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

	longer := passtFiles(name, clones+"c", base)
	if err := longer.start(t.Context(), program, owner, port, 22); !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), "shorter storage") {
		t.Errorf("a byte more: %v", err)
	}
}

// The number in the pid file may be another process's by now.
func TestStopEndsOnlyItsOwnPasst(t *testing.T) {
	dir := t.TempDir()
	p := passtFiles("name", filepath.Join(dir, "clones"), dir)
	for _, test := range []struct {
		name string
		argv []string
		ends bool
	}{
		{"passt", []string{"sh", "-c", "read x", "--socket", p.bound, "x"}, true},
		{"another", []string{"sh", "-c", "read x", "--socket", p.bound + "2"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(test.argv[0], test.argv[1:]...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.pidFile, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
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
	for _, text := range []string{"", "x", "-1", "1", "0"} {
		if err := os.WriteFile(p.pidFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.stop(); err == nil {
			t.Errorf("pid file %q: no error", text)
		}
	}
}
