package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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

// The number in the pid file may be another process's by now.
func TestStopEndsOnlyItsOwnPasst(t *testing.T) {
	dir := t.TempDir()
	p := passtFiles("name", filepath.Join(dir, "clones"), dir)
	for _, test := range []struct {
		name string
		argv []string
		ends bool
	}{
		{"passt", []string{"sh", "-c", "read x", "--socket", p.socket, "x"}, true},
		{"another", []string{"sh", "-c", "read x", "--socket", p.socket + "2"}, false},
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
