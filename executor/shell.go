package executor

import (
	"fmt"

	"al.essio.dev/pkg/shellescape"
)

// A shell is a value of the setting shell.
type shell struct {
	// command is started in the guest, with the script on its standard input.
	command string
	// runner is what GitLab Runner is told, so that it writes a script for it.
	runner string
	// prefix goes before a script of GitLab's, on standard input.
	prefix string
	// export is a statement of the shell that puts a variable into the environment
	// of what the script starts, if the shell lets it: some names are readonly, and
	// a guest's profile may add to them.
	export func(name, value string) string
	// powerShell: see powershell.go.
	powerShell bool
}

// shells by name. Those of POSIX are login shells, as GitLab's own ssh executor
// uses: a job finds what /etc/profile puts on the PATH.
var shells = map[string]shell{
	"bash":       {command: "bash --login", runner: "bash", prefix: pathPrefix, export: exportPOSIX},
	"sh":         {command: "sh -l", runner: "sh", prefix: pathPrefix, export: exportPOSIX},
	"zsh":        {command: "zsh --login", runner: "bash", prefix: pathPrefix, export: exportZsh},
	"pwsh":       {command: powerShell("pwsh", bootstrap), runner: "pwsh", export: exportPowerShell, powerShell: true},
	"powershell": {command: powerShell("powershell", bootstrap), runner: "powershell", export: exportPowerShell, powerShell: true},
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
