package gitlab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"al.essio.dev/pkg/shellescape"
)

// A Build is a job that runs.
type Build struct {
	runner Runner
	job    Job
	cancel context.CancelCauseFunc
	log    *Trace
	done   chan struct{}

	// canceling is closed when the job is canceled gracefully.
	canceling      chan struct{}
	cancelGraceful func()
	// scriptOver is closed when the time of the script is over.
	scriptOver   chan struct{}
	expireScript func()

	mu      sync.Mutex
	current *os.Process // leader of the process group of the stage that runs

	result    Result // complete when done is closed; Executions is mu's
	runnerLog lockedBuilder
}

// Log is the job log. It grows while the job runs.
func (b *Build) Log() *Trace { return b.log }

// Cancel does what "Force cancel" in GitLab does: SIGTERM to the stage that runs, no
// further one but cleanup. So did "Cancel" before GitLab 17.
func (b *Build) Cancel() { b.cancel(nil) }

// CancelGracefully does what "Cancel" in GitLab does: SIGTERM to the job's script;
// then come after_script and the other stages of a job that failed. A job without
// a script yet gets none any more.
func (b *Build) CancelGracefully() { b.cancelGraceful() }

// Expire ends the time of the job ([Job.Timeout]) now, so that a test can choose when:
// SIGTERM to the stage that runs, no further one but cleanup.
func (b *Build) Expire() { b.cancel(context.DeadlineExceeded) }

// ExpireScript ends the time of the script (RUNNER_SCRIPT_TIMEOUT) now: SIGTERM to the
// script, and then the stages of a job that failed.
func (b *Build) ExpireScript() { b.expireScript() }

// Signal sends a signal to the process group of the stage that runs, as somebody
// else than the runner may do (the kernel, an admin).
func (b *Build) Signal(signal syscall.Signal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil {
		return errors.New("no stage runs")
	}
	return syscall.Kill(-b.current.Pid, signal)
}

// Wait waits for the job's end.
func (b *Build) Wait() Result {
	<-b.done
	return b.result
}

// run is the whole job: prepare, stages, cleanup, and only then the status.
func (b *Build) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, b.job.Timeout)
	defer cancel()
	preparing, cancel := b.untilCanceled(ctx)
	defer cancel()
	attempt, err := b.prepare(preparing)
	if err == nil {
		err = b.runAndCleanUp(ctx, attempt)
	}
	b.conclude(ctx, err)
}

// untilCanceled is a context that ends with a graceful cancel, too.
func (b *Build) untilCanceled(ctx context.Context) (context.Context, context.CancelFunc) {
	return until(ctx, b.canceling)
}

// until returns a context that also ends when the channel is closed.
func until(ctx context.Context, closed <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// runAndCleanUp runs the scripts, and cleanup after them; beside them, if they
// were told to end and do not for FinishTimeout.
func (b *Build) runAndCleanUp(ctx context.Context, a *attempt) error {
	ended := make(chan error, 1)
	go func() { ended <- b.runStages(ctx, a) }()
	select {
	case err := <-ended:
		b.cleanup(a)
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		b.cleanup(a)
		return err
	case <-time.After(b.runner.FinishTimeout):
		b.cleanup(a)
		return <-ended
	}
}

func (b *Build) conclude(ctx context.Context, err error) {
	b.result.JobLog, b.result.RunnerLog = b.log.String(), b.runnerLog.String()
	b.result.Err = err
	failure := new(buildError)
	switch {
	case err == nil:
		b.result.Status = Success
	case errors.Is(context.Cause(ctx), context.Canceled) || b.isCanceling():
		b.result.Status = Canceled
	case errors.As(err, &failure):
		b.result.Status, b.result.ExitCode = BuildFailure, failure.exitCode
	default:
		b.result.Status = SystemFailure
	}
}

func (b *Build) isCanceling() bool {
	select {
	case <-b.canceling:
		return true
	default:
		return false
	}
}

// An attempt is a try to prepare the job, and all that follows if it succeeds.
type attempt struct {
	number int
	dir    string // 0700, working directory and TMPDIR of its stages
	config config
}

// A config is what the driver's config stage writes to stdout. Unknown keys mean
// nothing.
type config struct {
	Driver            struct{ Name, Version *string } `json:"driver"`
	Hostname          string                          `json:"hostname"`
	BuildsDir         string                          `json:"builds_dir"`
	CacheDir          string                          `json:"cache_dir"`
	BuildsDirIsShared bool                            `json:"builds_dir_is_shared"`
	JobEnv            map[string]string               `json:"job_env"`
	Shell             string                          `json:"shell"`
}

// prepare tries config and prepare until both succeed. A cleanup follows each
// attempt that fails; one failure of the build ends the attempts.
func (b *Build) prepare(ctx context.Context) (*attempt, error) {
	var failed error
	for number := 1; number <= PrepareAttempts; number++ {
		attempt, err := b.newAttempt(number)
		if err != nil {
			return nil, err
		}
		if failed = b.prepareOnce(ctx, attempt); failed == nil {
			return attempt, nil
		}
		b.cleanup(attempt)
		if final := new(buildError); errors.As(failed, &final) {
			return nil, failed
		}
		select {
		case <-ctx.Done():
		case <-time.After(b.runner.PrepareWait):
		}
		if ctx.Err() != nil {
			return nil, errors.Join(failed, ctx.Err())
		}
	}
	return nil, fmt.Errorf("prepare environment: %w", failed)
}

func (b *Build) prepareOnce(ctx context.Context, a *attempt) error {
	e := b.execute(ctx, a, execution{
		stage: "config", timeout: b.runner.StageTimeout, stderr: b.log,
		env: b.environment(a, directories{}),
	})
	if err := e.failure(); err != nil {
		return err
	}
	if text := strings.TrimSpace(e.Stdout); text != "" {
		if err := json.Unmarshal([]byte(text), &a.config); err != nil {
			return fmt.Errorf("read the JSON of config: %w", err)
		}
	}
	if dirs := b.directories(a); dirs.builds == "" || dirs.cache == "" {
		return errors.New("neither config nor config.toml names builds_dir and cache_dir")
	}
	e = b.execute(ctx, a, execution{
		stage: "prepare", timeout: b.runner.StageTimeout, stdout: b.log, stderr: b.log,
		env: b.environment(a, b.directories(a)),
	})
	return e.failure()
}

// runStages runs the scripts in GitLab Runner's order. What comes after the
// job's own script depends on whether that failed, and changes nothing about it,
// but for failed uploads of a job that succeeded.
func (b *Build) runStages(ctx context.Context, a *attempt) error {
	script, cancel := b.untilCanceled(ctx)
	defer cancel()
	if err := b.runScript(script, a, StagePrepareScript); err != nil {
		return fmt.Errorf("prepare environment: %w", err)
	}
	var err error
	for _, stage := range []string{StageGetSources, StageRestoreCache, StageDownloadArtifacts} {
		if err == nil {
			err = b.attemptScript(script, a, stage)
		}
	}
	if err == nil {
		err = b.runUserScripts(ctx, script, a)
	}
	last := []string{StageArchiveCache, StageUploadArtifacts}
	if err != nil {
		last = []string{StageArchiveCacheOnFailure, StageUploadArtifactsOnFailure}
	}
	for _, stage := range last {
		if failed := b.runScript(ctx, a, stage); err == nil {
			err = failed
		}
	}
	if failed := b.runScript(ctx, a, StageCleanupFileVariables); failed != nil {
		fmt.Fprintf(b.log, "WARNING: Error while executing file based variables removal script: %v\n", failed)
	}
	return err
}

// The variables by which an author chooses how often a stage is tried: from 1 to
// 10 times.
var attemptVariables = map[string]string{
	StageGetSources:        "GET_SOURCES_ATTEMPTS",
	StageRestoreCache:      "RESTORE_CACHE_ATTEMPTS",
	StageDownloadArtifacts: "ARTIFACT_DOWNLOAD_ATTEMPTS",
}

// attemptScript tries a stage again whatever its failure was.
func (b *Build) attemptScript(ctx context.Context, a *attempt, stage string) error {
	attempts := 1
	if wish := b.job.variable(attemptVariables[stage]); wish != "" {
		n, err := strconv.Atoi(wish)
		if err != nil || n < 1 || n > 10 {
			return fmt.Errorf("number of attempts out of the range [1, 10] for stage: %s", stage)
		}
		attempts = n
	}
	var err error
	for n := range attempts {
		if n == 1 && stage == StageGetSources {
			if err = b.runScript(ctx, a, StageClearWorktree); err != nil {
				continue
			}
		}
		if err = b.runScript(ctx, a, stage); err == nil {
			return nil
		}
	}
	return err
}

// afterScriptTimeout is how long after_script may take.
const afterScriptTimeout = 5 * time.Minute

// runUserScripts runs what the author wrote: script, further steps unless it
// failed, and after_script in any case.
func (b *Build) runUserScripts(ctx, script context.Context, a *attempt) error {
	script, cancel := until(script, b.scriptOver)
	defer cancel()
	script, cancel = b.stageTimeout(script, "RUNNER_SCRIPT_TIMEOUT", 0)
	defer cancel()
	err := b.runScript(script, a, StageBuildScript)
	for _, step := range b.job.Steps {
		if err == nil {
			err = b.runStep(script, a, step)
		}
	}
	after, cancel := b.stageTimeout(ctx, "RUNNER_AFTER_SCRIPT_TIMEOUT", afterScriptTimeout)
	defer cancel()
	_ = b.runScript(after, a, StageAfterScript)
	return err
}

// stageTimeout is the time that the author's variable gives a stage; 0 is all that
// the job has.
func (b *Build) stageTimeout(ctx context.Context, variable string, timeout time.Duration) (context.Context, context.CancelFunc) {
	if wish, err := time.ParseDuration(b.job.variable(variable)); err == nil {
		timeout = wish
	}
	if timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

// runScript runs a stage's script, if it has one and the job is not canceled.
func (b *Build) runScript(ctx context.Context, a *attempt, stage string) error {
	body, ok := b.job.Scripts[stage]
	if stage == StageCleanupFileVariables && !ok {
		body, ok = b.removeFileVariables(a)
	}
	if !ok {
		return nil
	}
	return b.runBody(ctx, a, stage, body)
}

func (b *Build) runStep(ctx context.Context, a *attempt, step Step) error {
	return b.runBody(ctx, a, stageStep+step.Name, step.Script)
}

func (b *Build) runBody(ctx context.Context, a *attempt, stage, body string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	dirs := b.directories(a)
	name, text := script(a.config.Shell, body, dirs.project(b.job.ProjectPath), b.job.variables(dirs))
	path, err := b.writeScript(a, name, text)
	if err != nil {
		return err
	}
	e := b.execute(ctx, a, execution{
		stage: stage, verb: "run", args: []string{path, stage}, stdout: b.log, stderr: b.log,
		env: b.environment(a, dirs),
	})
	return e.failure()
}

// removeFileVariables is what removes the files of file variables, if there are
// any.
func (b *Build) removeFileVariables(a *attempt) (body string, ok bool) {
	project := b.directories(a).project(b.job.ProjectPath)
	for _, v := range b.job.Variables {
		if v.File {
			body += "rm -f " + shellescape.Quote(fileOf(v, project)) + "\n"
		}
	}
	return body, body != "" && !isPowerShell(a.config.Shell)
}

// cleanup runs also when the job is canceled, and its failure changes nothing.
// Its output is the admin's. Then the attempt's directory goes.
func (b *Build) cleanup(a *attempt) {
	e := b.execute(context.Background(), a, execution{
		stage: "cleanup", timeout: b.runner.StageTimeout, stdout: &b.runnerLog, stderr: &b.runnerLog,
		env: b.environment(a, b.directories(a)),
	})
	if err := e.failure(); err != nil {
		fmt.Fprintf(b.log, "WARNING: Cleanup script failed: %v\n", err)
	}
	if err := os.RemoveAll(a.dir); err != nil {
		fmt.Fprintf(&b.runnerLog, "remove %s: %v\n", a.dir, err)
	}
}

func (b *Build) directories(a *attempt) directories {
	dirs := directories{builds: a.config.BuildsDir, cache: a.config.CacheDir, shared: a.config.BuildsDirIsShared}
	setDefault(&dirs.builds, b.runner.BuildsDir)
	setDefault(&dirs.cache, b.runner.CacheDir)
	return dirs
}

// A buildError is the author's failure: final, and with an exit code of its own.
type buildError struct{ exitCode int }

func (e *buildError) Error() string { return "exit status " + strconv.Itoa(e.exitCode) }

// failure is what an execution's end means.
func (e Execution) failure() error {
	switch {
	case e.Err != nil:
		return e.Err
	case e.ExitCode == 0:
		return nil
	case e.ExitCode == BuildFailureExitCode && e.isScript():
		// Only the first line counts, and only if it is a number.
		line, _, _ := strings.Cut(e.CodeFile, "\n")
		if code, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
			return &buildError{exitCode: code}
		}
		return &buildError{exitCode: 1}
	case e.ExitCode == BuildFailureExitCode:
		return &buildError{}
	case e.ExitCode == SystemFailureExitCode:
		return fmt.Errorf("%s: exit status %d", e.Stage, e.ExitCode)
	default:
		return fmt.Errorf("%s: unknown Custom executor executable exit code %d", e.Stage, e.ExitCode)
	}
}

func (e Execution) isScript() bool {
	return e.Stage != "config" && e.Stage != "prepare" && e.Stage != "cleanup"
}
