package guestshell

import (
	"os/exec"
	"strings"
	"testing"
)

// No variable of a job stops the administrator's script: neither one that is readonly in
// the shell, nor one that the guest's profile has made readonly.
func TestExportsDoNotEndTheShell(t *testing.T) {
	variables := map[string]string{"AFTER": "it's here", "ZZZ": "last", "POSIXLY_CORRECT": "1", "READONLY": "job's"}
	for _, name := range []string{
		"UID", "EUID", "GID", "EGID", "PPID", "USERNAME", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "BASH_ARGC", "FUNCNAME", "GROUPS", "DIRSTACK",
		"OPTIND", "LINENO", "RANDOM", "SECONDS", "HISTSIZE", "HISTCMD", "TMOUT", "IFS", "PS4", "ENV", "BASH_ENV", "_",
		"status", "argv", "ARGC", "path", "fpath", "signals", "options", "ZSH_EVAL_CONTEXT",
	} {
		variables[name] = "not a number"
	}
	tried := 0
	for _, test := range []struct{ shell, command string }{
		{"bash", "bash"}, {"bash", "bash --posix"}, {"sh", "sh"}, {"sh", "dash"}, {"sh", "bash --posix"}, {"sh", "busybox sh"}, {"zsh", "zsh"},
	} {
		command := strings.Fields(test.command)
		if _, err := exec.LookPath(command[0]); err != nil {
			continue // not on this host
		}
		tried++
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin = strings.NewReader("readonly READONLY=profile\n" + shells[test.shell].exports(variables) +
			`/usr/bin/env | /usr/bin/grep -xE 'AFTER=.*|ZZZ=.*'; echo "$READONLY"` + "\n")
		output, err := cmd.CombinedOutput()
		if want := "AFTER=it's here\nZZZ=last\nprofile\n"; string(output) != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", test.command, output, err, want)
		}
	}
	if tried < 3 {
		t.Errorf("only %d shells are here", tried)
	}
}
