package gitlab

import (
	"fmt"
	"strings"
	"syscall"
	"time"
)

// A Status is what GitLab says of a job in the end.
type Status string

// How jobs end.
const (
	Success Status = "success"
	// BuildFailure is "script failure" in GitLab: the job's author is to blame.
	BuildFailure Status = "build failure"
	// SystemFailure is "runner system failure".
	SystemFailure Status = "system failure"
	Canceled      Status = "canceled"
)

// A Result is how a job ended.
type Result struct {
	Status Status
	// ExitCode is what "allow_failure: exit_codes:" compares: of a build failure in
	// a script, the number in the code file or 1; otherwise 0.
	ExitCode int
	// Err is why the job did not succeed, in the runner's words.
	Err error
	// Executions in the order in which they were started.
	Executions []Execution
	// JobLog is what the author sees, RunnerLog what the cleanups wrote for the
	// admin.
	JobLog, RunnerLog string
}

// Find returns the last execution of a stage ("config", "prepare", "cleanup", or
// one of those that run scripts), and whether there was one.
func (r Result) Find(stage string) (Execution, bool) {
	for i := len(r.Executions) - 1; i >= 0; i-- {
		if r.Executions[i].Stage == stage {
			return r.Executions[i], true
		}
	}
	return Execution{}, false
}

// Stages are the names of the executions, in their order.
func (r Result) Stages() []string {
	var names []string
	for _, e := range r.Executions {
		names = append(names, e.Stage)
	}
	return names
}

// String tells the whole story, for the message of a test that failed.
func (r Result) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s, exit code %d", r.Status, r.ExitCode)
	if r.Err != nil {
		fmt.Fprintf(&text, ": %v", r.Err)
	}
	for _, e := range r.Executions {
		fmt.Fprintf(&text, "\n%s", e)
	}
	return text.String()
}

// An Execution is one run of the driver.
type Execution struct {
	// Stage is "config", "prepare", "cleanup" or the name of the script's stage.
	Stage string
	// Attempt of the preparation, from 1.
	Attempt int
	// Dir was the working directory.
	Dir string
	// ExitCode is -1 if a signal ended the process: Signal.
	ExitCode int
	Signal   syscall.Signal
	// Terminated says that the runner sent SIGTERM, Killed that SIGKILL followed.
	Terminated, Killed bool
	// Stdout and Stderr are all that was written.
	Stdout, Stderr string
	// Duration is the time from start to exit. Then OutputDelay passed until both
	// outputs were at their end: longer than an instant if a daemon has inherited
	// them. OutputHeld says that the runner gave up waiting for that.
	Duration, OutputDelay time.Duration
	OutputHeld            bool
	// CodeFile is the content of BUILD_EXIT_CODE_FILE after the execution.
	CodeFile string
	// Err is why the process could not be run at all.
	Err error
}

// String tells how an execution went and what it wrote.
func (e Execution) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s (attempt %d): exit code %d", e.Stage, e.Attempt, e.ExitCode)
	if e.Signal != 0 {
		fmt.Fprintf(&text, ", ended by %v", e.Signal)
	}
	if e.Err != nil {
		fmt.Fprintf(&text, ", %v", e.Err)
	}
	fmt.Fprintf(&text, ", %v", e.Duration.Round(time.Millisecond))
	if e.OutputHeld || e.OutputDelay > 100*time.Millisecond {
		fmt.Fprintf(&text, ", output open for another %v", e.OutputDelay.Round(time.Millisecond))
	}
	for _, stream := range []struct{ name, text string }{{"stdout", e.Stdout}, {"stderr", e.Stderr}} {
		if stream.text != "" {
			fmt.Fprintf(&text, "\n  %s: %s", stream.name, strings.ReplaceAll(strings.TrimSuffix(stream.text, "\n"), "\n", "\n  | "))
		}
	}
	return text.String()
}
