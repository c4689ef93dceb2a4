package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// maxKeep bounds what a job may ask for.
const maxKeep = 24 * time.Hour

// consoleLife is how long the console log of a guest that did not come up is kept,
// consoleMax how much of it, in bytes.
const (
	consoleLife = 7 * 24 * time.Hour
	consoleMax  = 4 << 20
)

// outcomeFile, in the job's directory, tells cleanup how the job ended.
const outcomeFile = "outcome.json"

// An outcome is how a job ended, as far as its scripts went.
type outcome struct {
	// Stage that ended the job so; empty if none did yet.
	Stage string `json:"stage,omitempty"`
	// Result is a value of the label result of the metric sardine_jobs_total.
	Result string `json:"result"`
	// Keep is how long the machine is to be kept.
	Keep time.Duration `json:"keep,omitempty"`
}

// The results of jobs.
const (
	resultSuccess   = "success"
	resultScript    = "script_failure" // the job's own doing
	resultBuild     = "build_failure"
	resultSystem    = "system_failure"
	resultCancelled = "cancelled" // told to end: by somebody, or because its time was over
)

// resultOf is the result of a job whose stage ended with err. Of one that was told to
// end, by ctx, err says only what the signal interrupted.
func resultOf(ctx context.Context, err error) string {
	var script ScriptError
	switch {
	case errors.Is(err, ErrCancelled) || errors.Is(context.Cause(ctx), ErrCancelled):
		return resultCancelled
	case err == nil:
		return resultSuccess
	case errors.As(err, &script):
		return resultScript
	case Classify(err) == BuildFailure:
		return resultBuild
	}
	return resultSystem
}

// harmlessStages are those whose failure changes nothing about the job. That of any
// other fails it, if nothing did before.
//
// Source: executeScript and pickPriorityError in GitLab Runner's common/build.go.
var harmlessStages = []string{"after_script", "cleanup_file_variables"}

// keepTime is how long the machine of this job is kept if it fails.
func (d *Driver) keepTime(settings config.Resolved) (time.Duration, error) {
	wish := d.Job.Variable(config.VariableKeepOnFailure)
	if wish == "" {
		return settings.KeepOnFailure, nil
	}
	if !slices.Contains(d.Settings.Defaults.AllowedJobVariables, config.VariableKeepOnFailure) {
		return 0, d.refuseVariable(config.VariableKeepOnFailure)
	}
	keep, err := time.ParseDuration(wish)
	if err != nil || keep < 0 || keep > maxKeep {
		return 0, jobFault(fmt.Errorf("the job's variable %s is %q: want a time such as 30m, at most %s", config.VariableKeepOnFailure, wish, maxKeep))
	}
	return keep, nil
}

// noteStage remembers for cleanup that a stage of the job has begun, and end how it
// ended. In between it counts as failed: the driver may be killed. At the end it tells
// the author of a failed job how to look inside.
func (d *Driver) noteStage(dirs config.Dirs, stage string) (end func(context.Context, error)) {
	if stage == "clear_worktree" {
		stage = "get_sources" // of which it begins another attempt
	}
	before, err := d.outcome(dirs)
	decided := err == nil && before != nil && before.Stage != "" && before.Result != resultSuccess &&
		before.Stage != stage // unless this is another attempt
	if slices.Contains(harmlessStages, stage) || decided || !d.note(dirs, outcome{Stage: stage, Result: resultSystem}) {
		return func(context.Context, error) {}
	}
	return func(ctx context.Context, err error) {
		o := outcome{Stage: stage, Result: resultOf(ctx, err)}
		if o.Result != resultSuccess && o.Result != resultCancelled {
			if keep, err := d.keepTime(d.Settings.For(d.Job.Image)); err == nil {
				o.Keep = keep
			}
		}
		if d.note(dirs, o) && o.Keep > 0 {
			d.Log.Say("The machine is kept for %s after the job. On %s: gitlab-sardine-executor ssh %s", o.Keep, hostname(), d.Job.ID)
		}
	}
}

// notePrepared remembers that the job has a machine: if no script follows, somebody
// has cancelled it.
func (d *Driver) notePrepared(dirs config.Dirs) { d.note(dirs, outcome{Result: resultCancelled}) }

// note writes the outcome so far, and reports whether it could.
func (d *Driver) note(dirs config.Dirs, o outcome) bool {
	text, _ := json.Marshal(o)
	err := os.WriteFile(filepath.Join(d.jobDir(dirs), outcomeFile), text, 0o600)
	if err != nil {
		d.admin().Warn("cleanup will not know how the job ended", "error", err)
	}
	return err == nil
}

// outcome is how the job ended; nil if it has no machine. Without a word of prepare,
// or with half of one, its driver was killed.
func (d *Driver) outcome(dirs config.Dirs) (*outcome, error) {
	killed := &outcome{Result: resultSystem}
	text, err := os.ReadFile(filepath.Join(d.jobDir(dirs), outcomeFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.jobDir(dirs)); err == nil {
			return killed, nil
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("see how the job ended: %w", err)
	}
	o := &outcome{}
	if err := json.Unmarshal(text, o); err != nil {
		return killed, fmt.Errorf("see how the job ended: %w", err)
	}
	return o, nil
}

// keep gives the machine of a failed job the rest of its life, and reports whether
// there is one. Sweep ends it.
func (d *Driver) keep(ctx context.Context, host *vm.Host, o *outcome) (bool, error) {
	if o == nil || o.Keep == 0 {
		return false, nil
	}
	until := time.Now().Add(o.Keep)
	err := record.Keep(ctx, host.Host, d.Job.VMName(), until)
	if errors.Is(err, virt.ErrNoDomain) {
		return false, nil
	}
	d.admin().Info("the machine of a failed job is kept", "until", until)
	return err == nil, err
}

// saveConsole keeps the console log of a guest that did not come up. Its last
// lines are in the job's log; the rest is for the administrator.
func (d *Driver) saveConsole(dirs config.Dirs, cause error) {
	if !errors.Is(cause, vm.ErrNoAnswer) && !errors.Is(cause, vm.ErrGuestStopped) && !errors.Is(cause, guestssh.ErrLogin) {
		return
	}
	from, err := os.Open(filepath.Join(d.jobDir(dirs), vm.ConsoleFile))
	if err != nil {
		return // the machine has no serial port
	}
	defer from.Close()
	path := filepath.Join(dirs.Consoles, d.Job.VMName()+".log")
	err = os.MkdirAll(dirs.Consoles, 0o700)
	if err == nil {
		err = writeConsole(path, io.LimitReader(from, consoleMax))
	}
	d.admin().Info("console log of a guest that did not come up", "path", path, "error", err)
}

func writeConsole(path string, from io.Reader) error {
	to, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// sweepConsoles removes console logs that nobody came to read.
func sweepConsoles(dirs config.Dirs, now time.Time) error {
	entries, err := os.ReadDir(dirs.Consoles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var failed []error
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && now.Sub(info.ModTime()) > consoleLife {
			failed = append(failed, os.Remove(filepath.Join(dirs.Consoles, entry.Name())))
		}
	}
	return errors.Join(append(failed, err)...)
}
