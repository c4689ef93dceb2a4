package guestshell

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"al.essio.dev/pkg/shellescape"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/guestssh"
)

// toolsTimeout bounds the mount of the tools disk, versionTimeout the question for a
// version.
const (
	toolsTimeout   = time.Minute
	versionTimeout = 30 * time.Second
)

var (
	//go:embed scripts/mount-tools.sh
	mountTools string
	//go:embed scripts/mount-tools.ps1
	mountToolsPS string
)

// Tools is what a guest makes of the disk with programs of the host.
type Tools struct {
	// Linked: gitlab-runner of the disk is the first on the PATH of GitLab's scripts.
	Linked bool
	// Own: the guest has a gitlab-runner of its own, which is used.
	Own bool
	// Unusable is why the guest cannot use the disk; empty if it can.
	Unusable string
}

// UseTools makes the guest mount the tools disk with that serial number, and puts its
// programs first on the PATH of GitLab's scripts. A gitlab-runner of the guest's own goes
// before unless host is true.
func UseTools(ctx context.Context, guest Guest, settings config.Resolved, serial string, host bool) (Tools, error) {
	prefer := "guest"
	if host {
		prefer = "host"
	}
	// A login shell, as for GitLab's scripts: the profile sets the PATH.
	line := "sh -l -s " + shellescape.QuoteCommand([]string{serial, guestBin, prefer})
	script := mountTools
	if settings.Windows() {
		line, script = For(settings.Shell).Command, "$prefer = "+quotePowerShell(prefer)+"\n"+mountToolsPS
	}
	mounting, cancel := context.WithTimeout(ctx, toolsTimeout)
	defer cancel()
	var stdout, stderr beginning
	status, err := guest.Run(mounting, guestssh.Command{Line: line, Stdin: strings.NewReader(script), Stdout: &stdout, Stderr: &stderr})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return Tools{Unusable: fmt.Sprintf("it did not mount the disk within %s", toolsTimeout)}, nil
	}
	if err != nil {
		return Tools{}, fmt.Errorf("mount the disk with gitlab-runner in the guest: %w", err)
	}
	word, why, _ := strings.Cut(answer(stdout.String()), " ")
	switch word {
	case "linked":
		return Tools{Linked: true}, nil
	case "own":
		return Tools{Own: true}, nil
	case "":
		why = fmt.Sprintf("exit status %d: %.200s", status, stderr.String())
	}
	return Tools{Unusable: why}, nil
}

// runnerVersion finds the version in the output of gitlab-runner --version.
var runnerVersion = regexp.MustCompile(`(?m)^Version:\s*v?(\d+\.\d+)(\S*)`)

// A Version is a version of GitLab Runner.
type Version struct{ Minor, Rest string } // "17.9" and ".3"

func (v Version) String() string { return v.Minor + v.Rest }

func versionIn(output string) (v Version, ok bool) {
	found := runnerVersion.FindStringSubmatch(strings.ReplaceAll(output, "\r", ""))
	if found == nil {
		return v, false
	}
	return Version{found[1], found[2]}, true
}

// HostRunnerVersion asks a gitlab-runner of this host for its version; ok is false if it
// does not tell: it may be for another system.
func HostRunnerVersion(ctx context.Context, path string) (v Version, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	output, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return v, false
	}
	return versionIn(string(output))
}

// GuestRunnerVersion asks the guest's own gitlab-runner.
func GuestRunnerVersion(ctx context.Context, guest Guest, settings config.Resolved) (v Version, ok bool, err error) {
	command := "sh -l"
	if settings.Windows() {
		command = For(settings.Shell).Command
	}
	asking, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var stdout beginning
	_, err = guest.Run(asking, guestssh.Command{Line: command, Stdin: strings.NewReader("gitlab-runner --version\n"), Stdout: &stdout})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("ask gitlab-runner in the guest for its version: %w", err)
	}
	v, ok = versionIn(stdout.String())
	return v, ok, nil
}
