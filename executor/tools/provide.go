// Package tools gives guests the programs of this host that GitLab's scripts call:
// gitlab-runner, for artifacts and cache, and step-runner, for run:.
package tools

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/vm/toolsdisk"
)

// runnerFile, in the job's directory, says what is left to do before a script can call
// gitlab-runner in the guest: one of the words below, and a reason. Without it, gitlab-runner
// is copied into a guest that has none.
const runnerFile = "runner"

const (
	runnerDisk = "disk" // let the guest use the tools disk
	runnerOwn  = "own"  // compare the version of the guest's own with this host's
	runnerCopy = "copy" // copy it into a guest that has none
	runnerDone = "done" // nothing: the guest has one, or cannot get one
)

// runnerStages have scripts that call gitlab-runner in the guest.
var runnerStages = []string{
	"restore_cache", "download_artifacts", "archive_cache", "archive_cache_on_failure",
	"upload_artifacts_on_success", "upload_artifacts_on_failure",
}

// stepRunner is what the script of a job with run: calls.
const stepRunner = "step-runner"

// Note notes in the job's directory, for later stages, that the guest has a tools disk. The
// guest mounts it before the first script that needs it: most jobs need none, and prepare is
// not longer.
func Note(jobDir string) error { return (&Guest{JobDir: jobDir}).writeTodo(runnerDisk, "") }

// A Guest is a guest that may need the programs.
type Guest struct {
	guestshell.Guest
	Settings config.Resolved
	// JobDir is the directory of the job's machine.
	JobDir string
	// Log of the job.
	Log *joblog.Log
}

// Provide makes sure that the guest has the programs that the script of a stage calls. It does
// not change the position in the script, if that is a file.
func (g *Guest) Provide(ctx context.Context, stage string, script io.Reader) error {
	isRunnerStage := slices.Contains(runnerStages, stage)
	if g.Settings.RunnerBinary == config.RunnerOff || !isRunnerStage && !mentions(script, stepRunner) {
		return nil
	}
	todo, why, err := g.todo()
	if err == nil && todo == runnerDisk {
		if todo, why, err = g.useDisk(ctx); err == nil {
			err = g.writeTodo(todo, why)
		}
	}
	if err != nil || !isRunnerStage || todo == runnerDone {
		return err
	}
	switch {
	case todo == runnerOwn:
		err = g.compare(ctx)
	case g.isCancelled(stage): // the job should end soon
		g.Log.Warn("the job was cancelled: gitlab-runner is not copied into the guest for %s", stage)
		return nil
	default:
		err = guestshell.CopyRunner(ctx, g, g.Settings, why, g.Log)
	}
	if err != nil {
		return err
	}
	return g.writeTodo(runnerDone, "")
}

func (g *Guest) todo() (todo, why string, err error) {
	text, err := os.ReadFile(filepath.Join(g.JobDir, runnerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return runnerCopy, "", nil
	}
	todo, why, _ = strings.Cut(string(text), " ")
	return todo, why, err
}

func (g *Guest) writeTodo(todo, why string) error {
	return os.WriteFile(filepath.Join(g.JobDir, runnerFile), []byte(strings.TrimSpace(todo+" "+why)), 0o600)
}

// useDisk lets the guest use the tools disk, and returns what is left to do.
func (g *Guest) useDisk(ctx context.Context) (todo, why string, err error) {
	tools, err := guestshell.UseTools(ctx, g, g.Settings, toolsdisk.Serial, false)
	switch {
	case err != nil:
		return "", "", err
	case tools.Linked, tools.Own && g.Settings.RunnerBinary == config.RunnerGuest:
		return runnerDone, "", nil
	case tools.Own:
		return runnerOwn, "", nil
	}
	return runnerCopy, tools.Unusable, nil
}

// compare uses this host's gitlab-runner if the guest's own is of another minor version,
// since the two should match (https://docs.gitlab.com/runner/#gitlab-runner-versions).
func (g *Guest) compare(ctx context.Context) error {
	path, err := guestshell.HostRunner(g.Settings.RunnerBinary)
	if err != nil {
		return nil // it was there when prepare ran
	}
	host, ok := guestshell.HostRunnerVersion(ctx, path)
	if !ok {
		return ctx.Err()
	}
	own, ok, err := guestshell.GuestRunnerVersion(ctx, g, g.Settings)
	if err != nil || ok && own.Minor == host.Minor {
		return err
	}
	tools, err := guestshell.UseTools(ctx, g, g.Settings, toolsdisk.Serial, true)
	if err != nil {
		return err
	}
	has := "does not tell its version"
	if ok {
		has = "is " + own.String()
	}
	if !tools.Linked {
		g.Log.Warn("gitlab-runner in the guest %s, and this host's is %s, which the guest cannot use: %s", has, host, tools.Unusable)
		return nil
	}
	g.Log.Say("gitlab-runner in the guest %s: this host's %s is used instead (setting runner_binary)", has, host)
	return nil
}

// isCancelled reports whether a stage before this one ended by a signal.
func (g *Guest) isCancelled(stage string) bool {
	o, err := outcome.Load(g.JobDir)
	return err == nil && o != nil && o.Result == outcome.Cancelled && o.Stage != "" && o.Stage != stage
}

// mentions reports whether the file of a script contains a word. It does not change the
// position in the file.
func mentions(script io.Reader, word string) bool {
	file, ok := script.(io.ReaderAt)
	if !ok {
		return false
	}
	const block = 1 << 20
	text := make([]byte, block)
	for offset := int64(0); ; offset += block - int64(len(word)) {
		n, err := file.ReadAt(text, offset)
		if bytes.Contains(text[:n], []byte(word)) {
			return true
		}
		if err != nil {
			return false
		}
	}
}
