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

// dirsTimeout bounds the creation of directories. On Windows the first PowerShell can
// take half a minute to start.
const (
	dirsTimeout        = 30 * time.Second
	dirsTimeoutWindows = 2 * time.Minute
)

// MakeDirs creates the directories for GitLab Runner's scripts, with sudo if the guest's
// user lacks the permission: most images allow sudo without a password. A failure is
// only a warning, because a job without a checkout does not need the directories.
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
		return fmt.Errorf("create the directories for builds and cache in the guest: %w", err)
	}
	if status != 0 {
		shell, _, _ := strings.Cut(command, " ")
		log.Warn("cannot create the directories for builds and cache: the guest cannot run %s (exit status %d: %s): %s", shell, status, joblog.OneLine(stderr.String()), wrongSystem(settings))
	} else if failed := answers(stdout.String()); len(failed) > 0 {
		log.Warn("the guest's user cannot create or write %s, which GitLab's scripts need: "+
			"set guest_builds_dir and guest_cache_dir for this image", strings.Join(failed, " and "))
	}
	return nil
}

// wrongSystem says what to do if the guest's system does not match the settings.
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
