// Package outcome records how a job ended. Each stage is a process of its own; cleanup
// reads what they recorded in the directory of the job's machine.
package outcome

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gitlab-sardine-executor/executor/failure"
)

// file is the name in the directory of the job's machine.
const file = "outcome.json"

// An Outcome is how a job ended, as far as its stages ran.
type Outcome struct {
	// Stage that decided; empty before the first.
	Stage string `json:"stage,omitempty"`
	// Result is the label result of the metric sardine_jobs_total.
	Result string `json:"result"`
	// Keep is how long to keep the machine.
	Keep time.Duration `json:"keep,omitempty"`
}

// Results of jobs.
const (
	Success       = "success"
	scriptFailure = "script_failure"
	buildFailure  = "build_failure"
	systemFailure = "system_failure"
	Cancelled     = "cancelled" // by a person, or by a timeout
	// Unknown: another program ran the scripts.
	Unknown = "unknown"
)

// ResultOf returns the result of a job with a stage that ended with err. After a signal,
// which ends ctx, err does not count.
func ResultOf(ctx context.Context, err error) string {
	var script failure.ScriptError
	switch {
	case errors.Is(err, failure.ErrCancelled) || errors.Is(context.Cause(ctx), failure.ErrCancelled):
		return Cancelled
	case err == nil:
		return Success
	case errors.As(err, &script):
		return scriptFailure
	case failure.Classify(err) == failure.Build:
		return buildFailure
	}
	return systemFailure
}

// harmlessStages can fail without failing the job. The failure of any other stage fails
// the job, unless an earlier one did.
//
// Source: executeScript and pickPriorityError in GitLab Runner's common/build.go.
var harmlessStages = []string{"after_script", "cleanup_file_variables"}

// Begin returns the outcome to record while stage runs: a system failure, because the
// driver may be killed. decides says whether the stage can change the outcome before.
func Begin(before *Outcome, stage string) (o Outcome, decides bool) {
	if stage == "clear_worktree" {
		stage = "get_sources" // it begins another attempt
	}
	failed := before != nil && before.Stage != "" && before.Result != Success
	decides = !slices.Contains(harmlessStages, stage) && (!failed || before.Stage == stage)
	return Outcome{Stage: stage, Result: systemFailure}, decides
}

// Save records the outcome in the directory of the job's machine.
func (o Outcome) Save(dir string) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), text, 0o600)
}

// Load reads the outcome; nil without that directory, because there was no machine. If
// the outcome is missing or incomplete, the driver was killed: a system failure.
func Load(dir string) (*Outcome, error) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(dir); err == nil {
			return &Outcome{Result: systemFailure}, nil
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how the job ended: %w", err)
	}
	o := &Outcome{}
	if err := json.Unmarshal(text, o); err != nil {
		return &Outcome{Result: systemFailure}, fmt.Errorf("read how the job ended: %w", err)
	}
	return o, nil
}
