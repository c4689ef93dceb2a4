package guestshell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// A localShell is a shell of this host that stands for one of guests: the setting, and the
// command that replaces the first word of the command line.
type localShell struct{ shell, command string }

var localShells = []localShell{
	{"bash", "bash"}, {"sh", "sh"}, {"sh", "dash"}, {"sh", "busybox sh"}, {"zsh", "zsh"},
}

// isHere reports whether a shell is on this host. dash is left out if it is sh.
func isHere(command string) bool {
	path, err := exec.LookPath(strings.Fields(command)[0])
	if err != nil || command != "dash" {
		return err == nil
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		return true
	}
	first, err1 := os.Stat(path)
	second, err2 := os.Stat(sh)
	return err1 != nil || err2 != nil || !os.SameFile(first, second)
}

// eachShell runs a script in each shell as an SSH server would: its command line is run by
// the user's shell.
func eachShell(t *testing.T, merged bool, script string, check func(t *testing.T, stdout, stderr string, status int)) {
	t.Helper()
	if tried := inShells(t, localShells, merged, script, check); tried < 2 {
		t.Errorf("only %d shell is here", tried)
	}
}

// inShells is eachShell for some of localShells. It returns how many are here.
func inShells(t *testing.T, some []localShell, merged bool, script string, check func(t *testing.T, stdout, stderr string, status int)) (tried int) {
	t.Helper()
	home := t.TempDir()
	for _, local := range some {
		if !isHere(local.command) {
			continue
		}
		tried++
		t.Run(local.command, func(t *testing.T) {
			line, stdin, err := shells[local.shell].start(strings.NewReader(script), Options{Merged: merged})
			if err != nil {
				t.Fatal(err)
			}
			_, arguments, _ := strings.Cut(strings.TrimPrefix(line, "exec "), " ")
			cmd := exec.Command("sh", "-c", "exec "+local.command+" "+arguments)
			cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
			cmd.Stdin = stdin
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run()
			check(t, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode())
		})
	}
	return tried
}

// No command of a script can swallow the rest of the script, and its exit status is that of
// the script.
func TestScriptHasEmptyStdin(t *testing.T) {
	eachShell(t, false, "echo one\ncat\necho two >&2\nexit 3\n", func(t *testing.T, stdout, stderr string, status int) {
		if stdout != "one\n" || stderr != "two\n" || status != 3 {
			t.Errorf("got %q, %q, %d", stdout, stderr, status)
		}
	})
}

// Small and large scripts take other ways in bash. Whatever bytes they have, they arrive, around
// the sizes where the ways part, and leave nothing behind but what the script sets: no variable,
// and no open file for its commands.
func TestScriptSizes(t *testing.T) {
	head, tail := "v='", "'\nprintf %s \"$v\" | cksum\necho ${REPLY-unset}\nsh -c '[ ! -e /proc/self/fd/63 ] || echo open'\ncat\nexit 4\n"
	for _, size := range []int{200, smallMax - 1, smallMax, smallMax + 1, largeMin - 1, largeMin, largeMin + 1} {
		value := strings.Repeat("\x01\x7f\u00e9\xff \\$x\"`\n", size)[:size-len(head)-len(tail)]
		sum := exec.Command("cksum")
		sum.Stdin = strings.NewReader(value)
		want, err := sum.Output()
		if err != nil {
			t.Fatal(err)
		}
		some := localShells
		if size != 200 && size != largeMin {
			some = localShells[:1] // bash: the others have one way for all sizes
		}
		tried := inShells(t, some, true, head+value+tail, func(t *testing.T, output, _ string, status int) {
			if output != string(want)+"unset\n" || status != 4 {
				t.Errorf("%d bytes: status %d, %.200q, want %q", size, status, output, want)
			}
		})
		if tried == 0 {
			t.Errorf("%d bytes: no shell is here", size)
		}
	}
	line, stdin, err := shells["bash"].start(strings.NewReader("echo one\n\x00echo two\n"), Options{})
	if text, _ := io.ReadAll(stdin); err != nil || line != shells["bash"].Command || string(text) != "echo one\n\x00echo two\n" {
		t.Errorf("a script with a NUL: %q, %q, %v", line, text, err)
	}
	if _, _, err := shells["bash"].start(iotest.ErrReader(errors.New("disk")), Options{}); err == nil {
		t.Error("no error of a script that cannot be read")
	}
}

// A script that is cut off, because the driver was killed, does not run.
func TestSmallScriptIsCutOff(t *testing.T) {
	line, stdin, err := shells["bash"].start(strings.NewReader("echo ran\nrm -rf /tmp/directory-of-a-test\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", line)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = io.LimitReader(stdin, 20)
	if output, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(output), "ran") {
		t.Errorf("%v: %s", err, output)
	}
}

// A shell does not read its script byte by byte.
func TestLargeScript(t *testing.T) {
	const size = largeMin * 3 / 4
	var script strings.Builder
	script.WriteString("v='" + strings.Repeat("\x01\x7f\u00e9 \\$x\"`\n", size/12) + "'\n")
	for script.Len() < 2*size {
		fmt.Fprintln(&script, ": a line of a script, as long as many are, with ümlauts")
	}
	script.WriteString("echo ${#v} >/dev/null; printf %s \"$v\" | cksum\nwhile read -r name value; do [ \"$name\" != syscr: ] || echo $value; done </proc/$$/io\n")
	_, quoted, _ := strings.Cut(script.String(), "'")
	quoted, _, _ = strings.Cut(quoted, "'")
	sum := exec.Command("cksum")
	sum.Stdin = strings.NewReader(quoted)
	want, err := sum.Output()
	if err != nil {
		t.Fatal(err)
	}
	eachShell(t, false, script.String(), func(t *testing.T, stdout, stderr string, status int) {
		got, calls, _ := strings.Cut(stdout, "\n")
		n, err := strconv.Atoi(strings.TrimSpace(calls))
		if status != 0 || stderr != "" || got+"\n" != string(want) || err != nil {
			t.Fatalf("status %d, %.200q, %.200q: %v; want %q", status, stdout, stderr, err, want)
		}
		if n > script.Len()/64 {
			t.Errorf("%d reads for %d bytes", n, script.Len())
		}
	})
}

// The lines of both outputs stay in order.
func TestMergedOutputIsInOrder(t *testing.T) {
	var script, want strings.Builder
	for i := range 100 {
		fmt.Fprintf(&script, "echo %d\necho %d >&2\n", i, -i)
		fmt.Fprintf(&want, "%d\n%d\n", i, -i)
	}
	eachShell(t, true, script.String(), func(t *testing.T, stdout, stderr string, status int) {
		if stdout != want.String() || stderr != "" || status != 0 {
			t.Errorf("status %d, stderr %q, stdout:\n%s", status, stderr, stdout)
		}
	})
}

// A guest without cat runs nothing of the script, and the script does not seem to succeed.
func TestScriptWithoutCat(t *testing.T) {
	for _, size := range []int{smallMax + 1, largeMin} {
		line, stdin, err := shells["bash"].start(strings.NewReader("echo ran\n"+strings.Repeat("#\n", size/2)), Options{})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/bash", "-c", strings.Replace(line, "bash --login", "/bin/bash", 1))
		cmd.Env = []string{"PATH=/nonexistent"}
		cmd.Stdin = stdin
		output, _ := cmd.CombinedOutput()
		if strings.Contains(string(output), "ran") || cmd.ProcessState.ExitCode() != 127 {
			t.Errorf("%d bytes: status %d: %s", size, cmd.ProcessState.ExitCode(), output)
		}
	}
}

// A bash that cannot source a pipe runs a large script all the same.
func TestLargeScriptInOldBash(t *testing.T) {
	line, stdin, err := shells["bash"].start(strings.NewReader("echo ran $1\ncat\nexit 5\n"+strings.Repeat("#\n", largeMin/2)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(line, "${BASH_VERSINFO:-0}", "3", 1)
	if old == line {
		t.Fatalf("%s does not ask for the version", line)
	}
	cmd := exec.Command("sh", "-c", old)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Stdin = stdin
	output, _ := cmd.CombinedOutput()
	if string(output) != "ran\n" || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("status %d: %s", cmd.ProcessState.ExitCode(), output)
	}
}
