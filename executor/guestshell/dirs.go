package guestshell

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// dirsTimeout bounds what the guest is asked here. On Windows the first PowerShell can
// take half a minute to start.
const (
	dirsTimeout        = 30 * time.Second
	dirsTimeoutWindows = 2 * time.Minute
)

// MakeDirs makes the directories that GitLab Runner's scripts use. Where
// the guest's user may not, sudo without a password does, as most images allow.
// A job that checks out nothing can do without them, so that is only a warning.
func MakeDirs(ctx context.Context, guest Guest, settings config.Resolved, log *joblog.Log) error {
	dirs := []string{settings.GuestBuildsDir, settings.GuestCacheDir}
	timeout, command, script := dirsTimeout, "sh", makeDirsPOSIX(dirs)
	if settings.Windows() {
		timeout, command, script = dirsTimeoutWindows, For(settings.Shell).Command, makeDirsWindows(dirs)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	status, err := guest.Run(ctx, guestssh.Command{Line: command, Stdin: strings.NewReader(script), Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return fmt.Errorf("make the directories for builds and cache in the guest: %w", err)
	}
	if status != 0 {
		shell, _, _ := strings.Cut(command, " ")
		log.Warn("the guest cannot run %s (exit status %d: %s), and so has no directories for builds and cache: %s", shell, status, joblog.OneLine(stderr.String()), wrongSystem(settings))
	} else if failed := answers(stdout.String()); len(failed) > 0 {
		log.Warn("the guest's user can neither make nor write %s, which GitLab's scripts will want: "+
			"choose others for this image with guest_builds_dir and guest_cache_dir", strings.Join(failed, " and "))
	}
	return nil
}

// wrongSystem is what to do if a guest does not run what its settings say.
func wrongSystem(settings config.Resolved) string {
	if settings.Windows() {
		return fmt.Sprintf("a guest with guest_builds_dir = %q is expected to run Windows", settings.GuestBuildsDir)
	}
	return `if it runs Windows, set shell, and guest_builds_dir and guest_cache_dir to paths like C:\builds, for this image`
}

func makeDirsPOSIX(dirs []string) string {
	return `for dir in ` + shellescape.QuoteCommand(dirs) + `; do
	mkdir -p "$dir" 2>/dev/null && test -w "$dir" ||
	{ sudo -n mkdir -p "$dir" && sudo -n chown "$(id -u)" "$dir"; } 2>/dev/null ||
	echo "` + answerMark + `$dir"
done
`
}

func makeDirsWindows(dirs []string) string {
	return "$dirs = " + quoteAllPowerShell(dirs, ", ") + "\n" + mkdirs
}
