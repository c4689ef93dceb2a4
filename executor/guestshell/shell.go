package guestshell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/vm/guestssh"
)

// A Shell is a value of the setting shell.
type Shell struct {
	// Command line that starts the shell, which runs the script on standard input. The
	// commands of the script have an empty standard input.
	Command string
	// GitLab is the name of the shell for GitLab Runner, which writes the scripts.
	GitLab string
	// Prefix is sent before a script of GitLab.
	Prefix string

	// login starts a POSIX shell as a login shell.
	login string
	// sizes: the shell has faster ways for small and for large scripts.
	sizes bool
	// export returns a statement that exports a variable, or does nothing if the
	// variable is readonly: in the shell, or by the guest's profile.
	export func(name, value string) string
	// powerShell: see powershell.go.
	powerShell bool
}

// For returns the shell of that name, one of [config.Shells].
func For(name string) Shell { return shells[name] }

// shells by name. The POSIX ones are login shells, as in GitLab's own ssh executor:
// a job finds what /etc/profile puts on the PATH.
var shells = map[string]Shell{
	"bash":       bySize(posix("bash --login", "bash", exportPOSIX)),
	"sh":         posix("sh -l", "sh", exportPOSIX),
	"zsh":        posix("zsh --login", "bash", exportZsh),
	"pwsh":       windows("pwsh"),
	"powershell": windows("powershell"),
}

// runStdin runs the script on standard input. A shell that reads its script from a pipe
// reads it byte by byte, because commands may want the rest: a script of megabytes takes
// minutes in an emulated guest. cat reads it in blocks. A file would do, too, but the
// script holds the job's secrets, and the guest's disk may be full.
//
// The shell expands the words of a command before it redirects (POSIX.1-2017, XCU 2.9.1).
// If cat is missing, nothing of the script runs.
const runStdin = `eval "$(command cat || echo exit 127)" </dev/null`

// readSmall is what runStdin is for a small script, which the shell reads itself: byte by byte,
// in less time than two processes take, with which runStdin begins. A script that is cut off
// does not run. It takes a script that a NUL follows.
const readSmall = `read -r -d "" && eval "unset REPLY; $REPLY" </dev/null`

// smallMax is the size, in bytes, up to which that is so in an emulated guest (go test -tags boot
// -run '^$' -bench Scripts ./test/e2e).
const smallMax = 8 << 10

// sourceLarge is what runStdin is for a large script. A command substitution handles its text
// several times, one byte after another; a file that is sourced is only read, also as a whole
// before its first command. Bash before 4.0 reads nothing of such a file. It takes a script
// that begins with closeSource.
const sourceLarge = `if [ "${BASH_VERSINFO:-0}" -ge 4 ] && [ -d /dev/fd ]; then . <(command cat || echo exit 127) </dev/null; else ` + runStdin + `; fi`

// closeSource closes the file of sourceLarge, which the commands of the script would inherit;
// lvm, for one, complains of such files. runStdin has none.
const closeSource = `[ -z "$BASH_SOURCE" ] || eval "exec ${BASH_SOURCE##*/}<&-"` + "\n"

// largeMin is the size, in bytes, from which scripts are sourced. In these alone "return" at the
// top level ends the script; in others, and in GitLab's own executors, it is an error.
const largeMin = 1 << 20

// posix is a POSIX shell that login starts as a login shell. The user's own shell, which
// can be any, passes the quoted text on unchanged, and gives it its process: Dropbear sends a
// signal to that one alone, OpenSSH to all of the session.
func posix(login, gitlab string, export func(name, value string) string) Shell {
	s := Shell{GitLab: gitlab, Prefix: pathPrefix, login: login, export: export}
	s.Command = s.line(runStdin, Options{})
	return s
}

// bySize makes a shell run scripts of each size in the fastest way. Only bash has all of them.
func bySize(s Shell) Shell {
	s.sizes = true
	return s
}

// Options say how to run a script.
type Options struct {
	// Merged puts the standard error of the script on its standard output, so that their
	// order remains. PowerShell keeps them apart.
	Merged bool
	// Boot of the guest that is expected; empty for any.
	Boot Boot
}

// line is the command line that starts a POSIX shell with a command that runs its standard
// input.
func (s Shell) line(run string, o Options) string {
	if o.Merged {
		run += " 2>&1"
	}
	return "exec " + s.login + " -c '" + o.Boot.guard() + run + "'"
}

// RunScript runs a script and returns its exit status. The error is [ErrOtherBoot] if the
// guest has rebooted: then nothing of the script has run.
func (s Shell) RunScript(ctx context.Context, guest Guest, script io.Reader, o Options, stdout, stderr io.Writer) (status int, err error) {
	line, stdin, err := s.start(script, o)
	if err != nil {
		return 0, err
	}
	status, err = guest.Run(ctx, guestssh.Command{Line: line, Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if err == nil && status == otherBoot && o.Boot != "" {
		err = o.Boot.check(ctx, guest)
	}
	return status, err
}

// start returns the command line that starts the shell for a script, and its standard input.
func (s Shell) start(script io.Reader, o Options) (line string, stdin io.Reader, err error) {
	if s.powerShell {
		return s.Command, script, nil
	}
	line = s.line(runStdin, o)
	if !s.sizes {
		return line, script, nil
	}
	begin := make([]byte, largeMin)
	n, err := io.ReadFull(script, begin)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", nil, fmt.Errorf("read the script: %w", err)
	}
	begin = begin[:n]
	switch {
	case n == largeMin:
		return s.line(sourceLarge, o), io.MultiReader(strings.NewReader(closeSource), bytes.NewReader(begin), script), nil
	case n > smallMax || bytes.IndexByte(begin, 0) >= 0:
		return line, bytes.NewReader(begin), nil
	}
	return s.line(readSmall, o), bytes.NewReader(append(begin, 0)), nil
}

// windows is the PowerShell of that name.
func windows(name string) Shell {
	command := powerShell(name, bootstrap)
	return Shell{Command: command, GitLab: name, export: exportPowerShell, powerShell: true}
}

// exportPOSIX uses command, because a special builtin that fails would exit the shell
// (POSIX.1-2017, XCU 2.8.1 and "command").
func exportPOSIX(name, value string) string {
	return fmt.Sprintf("command export %s=%s 2>/dev/null\n", name, shellescape.Quote(value))
}

// exportZsh cannot use command, which in zsh looks for a program.
func exportZsh(name, value string) string {
	return fmt.Sprintf("{ { export %s=%s; } always { TRY_BLOCK_ERROR=0; } } 2>/dev/null\n", name, shellescape.Quote(value))
}

func exportPowerShell(name, value string) string {
	return fmt.Sprintf("$env:%s = %s\n", name, quotePowerShell(value))
}

// shellName matches names of variables that are valid in every shell.
var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// exports returns statements that export a job's variables. Values are quoted, because
// they are the author's. Invalid names are left out; readonly variables do not change.
func (s Shell) exports(variables map[string]string) string {
	names := make([]string, 0, len(variables))
	for name := range variables {
		if shellName.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var text strings.Builder
	for _, name := range names {
		text.WriteString(s.export(name, variables[name]))
	}
	return text.String()
}

// JobScript returns the script that GitLab Runner would write for a job with that
// command; the default prints the system of the guest.
func (s Shell) JobScript(command []string) string {
	if s.powerShell {
		line := "[Environment]::OSVersion.VersionString"
		if len(command) > 0 {
			line = "& " + quoteAllPowerShell(command, " ")
		}
		return line + "\nif (!$?) { if ($LASTEXITCODE) { exit $LASTEXITCODE } else { exit 1 } }\n"
	}
	line := "uname -a"
	if len(command) > 0 {
		line = shellescape.QuoteCommand(command)
	}
	return fmt.Sprintf("#!/usr/bin/env bash\nset -e\n%s\nexit 0\n", line)
}
