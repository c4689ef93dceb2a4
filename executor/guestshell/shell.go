package guestshell

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"al.essio.dev/pkg/shellescape"
)

// A Shell is a value of the setting shell.
type Shell struct {
	// Command starts it in the guest, with the script on its standard input.
	Command string
	// GitLab is the name by which GitLab Runner knows the kind of script it wants.
	GitLab string
	// Prefix goes before a script of GitLab's, on standard input.
	Prefix string

	// export is a statement that puts a variable into the environment of what the
	// script starts, if the shell lets it: some names are readonly, and a guest's
	// profile may add to them.
	export func(name, value string) string
	// powerShell: see powershell.go.
	powerShell bool
}

// For returns the shell of that name, one of [config.Shells].
func For(name string) Shell { return shells[name] }

// shells by name. The POSIX ones are login shells, as in GitLab's own ssh executor:
// a job finds what /etc/profile puts on the PATH.
var shells = map[string]Shell{
	"bash":       {Command: "bash --login", GitLab: "bash", Prefix: pathPrefix, export: exportPOSIX},
	"sh":         {Command: "sh -l", GitLab: "sh", Prefix: pathPrefix, export: exportPOSIX},
	"zsh":        {Command: "zsh --login", GitLab: "bash", Prefix: pathPrefix, export: exportZsh},
	"pwsh":       {Command: powerShell("pwsh", bootstrap), GitLab: "pwsh", export: exportPowerShell, powerShell: true},
	"powershell": {Command: powerShell("powershell", bootstrap), GitLab: "powershell", export: exportPowerShell, powerShell: true},
}

// exportPOSIX exports by way of command: a special builtin that fails would end the
// shell (POSIX.1-2017, XCU 2.8.1 and "command").
func exportPOSIX(name, value string) string {
	return fmt.Sprintf("command export %s=%s 2>/dev/null\n", name, shellescape.Quote(value))
}

// exportZsh does without command, which in zsh looks for a program.
func exportZsh(name, value string) string {
	return fmt.Sprintf("{ { export %s=%s; } always { TRY_BLOCK_ERROR=0; } } 2>/dev/null\n", name, shellescape.Quote(value))
}

func exportPowerShell(name, value string) string {
	return fmt.Sprintf("$env:%s = %s\n", name, quotePowerShell(value))
}

// shellName is a name that every shell takes for a variable's.
var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// exports are statements that export a job's variables. Their values are the
// author's, and so are quoted, whatever they hold; names that no shell knows are
// left out, and those that a shell keeps to itself stay as they are.
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

// JobScript is the script that GitLab Runner would write for a job with that command;
// without one, the script prints which system runs in the guest.
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
