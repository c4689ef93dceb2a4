package guestshell

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/guestssh"
)

// guestBin is the directory for gitlab-runner in the guest, below the home of its user;
// pathPrefix puts it first on a script's PATH.
const (
	guestBin   = ".gitlab-sardine-executor/bin"
	pathPrefix = `export PATH="$HOME/` + guestBin + `:$PATH"` + "\n"
)

// CopyRunner copies gitlab-runner into a guest that lacks it, for artifacts and cache. why is
// the reason why the guest does not have it on a disk; empty if that is not known. If this
// host has none to copy, that is only a warning: GitLab's script reports what is missing,
// and some jobs do not need it.
func CopyRunner(ctx context.Context, guest Guest, settings config.Resolved, why string, log *joblog.Log) error {
	platform, err := guestPlatform(ctx, guest, settings)
	if err != nil || platform == "" {
		return err // nil if the guest has one
	}
	path, err := hostRunner(settings.RunnerBinary, platform)
	if err != nil {
		log.Warn("gitlab-runner is missing in the guest, and %v: artifacts and cache will not work (setting runner_binary)", err)
		return nil
	}
	return copyRunner(ctx, guest, path, copyCommand(settings), why, log)
}

// answerMark precedes an answer of the guest, because the profile of its shell may print
// other lines. The files in scripts/ use it too.
const answerMark = "gitlab-sardine-executor: "

// answers returns the rest of the line after each [answerMark].
func answers(stdout string) []string {
	var lines []string
	for _, behind := range strings.Split(stdout, answerMark)[1:] {
		line, _, _ := strings.Cut(behind, "\n")
		lines = append(lines, strings.TrimSpace(line))
	}
	return lines
}

// answer returns the first answer; empty if there is none.
func answer(stdout string) string {
	if lines := answers(stdout); len(lines) > 0 {
		return lines[0]
	}
	return ""
}

// guestPlatform returns the guest's uname, such as "Linux x86_64", or "Windows AMD64";
// empty if the guest has a gitlab-runner.
func guestPlatform(ctx context.Context, guest Guest, settings config.Resolved) (string, error) {
	command, script := platformQuestion(settings)
	var stdout bytes.Buffer
	if _, err := guest.Run(ctx, guestssh.Command{Line: command, Stdin: strings.NewReader(script), Stdout: &stdout}); err != nil {
		return "", fmt.Errorf("look for gitlab-runner in the guest: %w", err)
	}
	return answer(stdout.String()), nil
}

// platformQuestion returns the command and script for that.
func platformQuestion(settings config.Resolved) (command, script string) {
	if settings.Windows() {
		return For(settings.Shell).Command, platform
	}
	return "sh -l", pathPrefix + "command -v gitlab-runner >/dev/null 2>&1 || echo '" + answerMark + "'$(uname -sm)\n"
}

// unames maps unames to Go's platforms.
var unames = map[string]string{
	"Linux x86_64": "linux/amd64", "Linux aarch64": "linux/arm64", "Linux armv7l": "linux/arm",
	"Linux ppc64le": "linux/ppc64le", "Linux s390x": "linux/s390x", "Linux riscv64": "linux/riscv64",
	"Darwin arm64": "darwin/arm64", "Darwin x86_64": "darwin/amd64", "FreeBSD amd64": "freebsd/amd64",
	"Windows AMD64": "windows/amd64", "Windows ARM64": "windows/arm64",
}

// HostRunner returns the path of the gitlab-runner for guests: the one in the setting
// runner_binary, or this host's own. The error is [exec.ErrNotFound] if this host has none.
func HostRunner(setting string) (string, error) {
	if isPath(setting) {
		return setting, nil
	}
	return exec.LookPath("gitlab-runner")
}

// isPath reports whether the setting runner_binary is a path.
func isPath(setting string) bool {
	return setting != config.RunnerAuto && setting != config.RunnerGuest
}

// hostRunner returns the path of the binary to copy: this host's own must fit the guest.
func hostRunner(setting, platform string) (string, error) {
	if host := runtime.GOOS + "/" + runtime.GOARCH; !isPath(setting) && unames[platform] != host {
		return "", fmt.Errorf("that of this host is for %s, not for %s", host, platform)
	}
	path, err := HostRunner(setting)
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("it is not on the PATH of this host either")
	}
	return path, err
}

// copyCommand returns the command that writes standard input to gitlab-runner in the
// guest and answers with its checksum. It renames the file at the end, so that a
// cancelled stage leaves no incomplete binary.
func copyCommand(settings config.Resolved) string {
	if settings.Windows() {
		return powerShell(settings.Shell, copyRunnerPS)
	}
	return `sh -c 'umask 022; cd "$HOME" && mkdir -p ` + guestBin + ` && cd ` + guestBin +
		` && cat > new && chmod 755 new && printf "%s" "` + answerMark + `" && { sha256sum new 2>/dev/null || shasum -a 256 new; } && mv new gitlab-runner'`
}

// copyRunner copies a binary into the guest with command, and compares checksums.
func copyRunner(ctx context.Context, guest Guest, path, command, why string, log *joblog.Log) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w: runner_binary: %w", config.ErrSettings, err)
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil {
		if why != "" {
			why = ", which cannot use the disk with it: " + why
		}
		log.Say("Copying gitlab-runner (%s) into the guest%s", units.BytesSize(float64(info.Size())), joblog.OneLine(why))
	}
	sum := sha256.New()
	var stdout, stderr bytes.Buffer
	status, err := guest.Run(ctx, guestssh.Command{Line: command, Stdin: io.TeeReader(file, sum), Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return fmt.Errorf("copy gitlab-runner into the guest: %w", err)
	}
	want := hex.EncodeToString(sum.Sum(nil))
	if got, _, _ := strings.Cut(answer(stdout.String()), " "); status != 0 || got != want {
		return fmt.Errorf("copy gitlab-runner into the guest: status %d, checksum %q instead of %q: %s", status, got, want, joblog.OneLine(stderr.String()))
	}
	return nil
}
