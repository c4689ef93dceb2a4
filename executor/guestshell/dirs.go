package guestshell

import (
	"context"
	_ "embed" // the script
	"errors"
	"fmt"
	"slices"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// waitBoot waits for the end of the boot.
//
//go:embed scripts/wait-boot.sh
var waitBoot string

// errBooting says that the guest runs commands but has not finished its boot.
var errBooting = errors.New("the guest accepts the login, but its boot has not ended (see systemctl list-jobs and cloud-init status in the guest; " +
	`wait_for = "login" does not wait for it)`)

// Settle waits for the end of the guest's boot, unless the settings say otherwise, and
// creates the directories for GitLab Runner's scripts, with sudo if the guest's user lacks
// the permission: most images allow sudo without a password. A failure to create them is
// only a warning, because a job without a checkout does not need the directories. Settle
// records the guest's boot in dir, the directory of its machine.
//
// All share one command, which costs a tenth of a second in an emulated guest. The error
// is [guestssh.ErrLogin] if the guest demands a new password instead. Only ctx bounds it.
func Settle(ctx context.Context, guest Guest, settings config.Resolved, dir string, log *joblog.Log) error {
	dirs := []string{settings.GuestBuildsDir, settings.GuestCacheDir}
	command, script := "sh", makeDirsPOSIX(dirs)+sayBoot
	waits := settings.WaitFor == config.WaitBoot && !settings.Windows()
	switch {
	case settings.Windows():
		command, script = For(settings.Shell).Command, makeDirsWindows(dirs)
	case waits:
		script = waitBoot + script
	}
	var stdout, stderr beginning
	status, err := guest.Run(ctx, guestssh.Command{Line: command, Stdin: strings.NewReader(script), Stdout: &stdout, Stderr: &stderr})
	relay(stdout.String(), log)
	if waits && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errBooting, err)
	}
	if status != 0 {
		if expired := guestssh.PasswordExpired(stdout.String() + stderr.String()); expired != nil {
			return expired
		}
	}
	if err != nil {
		return fmt.Errorf("create the directories for builds and cache in the guest: %w", err)
	}
	if status != 0 {
		shell, _, _ := strings.Cut(command, " ")
		log.Warn("cannot create the directories for builds and cache: the guest cannot run %s (exit status %d: %s): %s", shell, status, joblog.OneLine(stderr.String()), wrongSystem(settings))
	} else if failed := failedDirs(stdout.String()); len(failed) > 0 {
		log.Warn("the guest's user cannot create or write %s, which GitLab's scripts need: "+
			"set guest_builds_dir and guest_cache_dir for this image", strings.Join(failed, " and "))
	}
	return bootIn(stdout.String()).Save(dir)
}

// failedDirs are the directories that the guest could not create or write.
func failedDirs(stdout string) []string {
	return slices.DeleteFunc(answers(stdout), func(answer string) bool { return strings.HasPrefix(answer, "boot ") })
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
