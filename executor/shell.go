package executor

import (
	"fmt"
	"regexp"

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

// windowsPath is an absolute path of Windows on a drive.
var windowsPath = regexp.MustCompile(`^[A-Za-z]:[\\/]`)

// Windows says whether the guests of these settings run Windows: then they have
// PowerShell, and no sh. What says it is where they keep their files, because pwsh
// runs on Linux, too.
func (s ImageSettings) Windows() bool { return windowsPath.MatchString(*s.GuestBuildsDir) }

// guestDirs are the defaults of guest_builds_dir and guest_cache_dir for a shell.
func guestDirs(shell string) (builds, cache string) {
	if shell == "powershell" { // which there is nowhere but on Windows
		return `C:\builds`, `C:\cache`
	}
	return *builtIn("").GuestBuildsDir, *builtIn("").GuestCacheDir
}

// checkGuestDirs wants the directories of guests to be where their shell can be.
func (p PerImage) checkGuestDirs() error {
	for _, setting := range []struct{ key, dir string }{{"guest_builds_dir", *p.GuestBuildsDir}, {"guest_cache_dir", *p.GuestCacheDir}} {
		key, dir := setting.key, setting.dir
		windows := windowsPath.MatchString(dir)
		switch {
		case windows && !shells[*p.Shell].powerShell:
			return fmt.Errorf("%s is %q, which no guest with the shell %s has", key, dir, *p.Shell)
		case !windows && *p.Shell == "powershell":
			return fmt.Errorf(`%s is %q: a guest with the shell powershell runs Windows, where a path begins with a drive, such as C:\builds`, key, dir)
		case windows != windowsPath.MatchString(*p.GuestBuildsDir):
			return fmt.Errorf("guest_builds_dir is %q and guest_cache_dir is %q: no guest has both", *p.GuestBuildsDir, *p.GuestCacheDir)
		}
	}
	return nil
}
