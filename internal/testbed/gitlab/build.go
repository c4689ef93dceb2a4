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
)

// A Build is a job that runs.
type Build struct {
	runner Runner
	job    Job
	cancel context.CancelFunc
	log    *Trace
	done   chan struct{}

	mu      sync.Mutex
	current *os.Process // leader of the process group of the stage that runs

	result    Result // complete when done is closed
	runnerLog strings.Builder
}

// Log is the job log. It grows while the job runs.
func (b *Build) Log() *Trace { return b.log }

// Cancel does what "Cancel" in GitLab does: SIGTERM to the stage that runs, no
// further one but cleanup.
func (b *Build) Cancel() { b.cancel() }

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
	attempt, err := b.prepare(ctx)
	if err == nil {
		err = b.runStages(ctx, attempt)
		b.cleanup(attempt)
	}
	b.conclude(ctx, err)
}

func (b *Build) conclude(ctx context.Context, err error) {
	b.result.JobLog, b.result.RunnerLog = b.log.String(), b.runnerLog.String()
	b.result.Err = err
	failure := new(buildError)
	switch {
	case err == nil:
		b.result.Status = Success
	case errors.Is(ctx.Err(), context.Canceled):
		b.result.Status = Canceled
	case errors.As(err, &failure):
		b.result.Status, b.result.ExitCode = BuildFailure, failure.exitCode
	default:
		b.result.Status = SystemFailure
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
	if err := b.runScript(ctx, a, StagePrepareScript); err != nil {
		return fmt.Errorf("prepare environment: %w", err)
	}
	var err error
	for _, stage := range []string{StageGetSources, StageRestoreCache, StageDownloadArtifacts} {
		if err == nil {
			err = b.runScript(ctx, a, stage)
		}
	}
	if err == nil {
		err = b.runScript(ctx, a, StageBuildScript)
		_ = b.runScript(ctx, a, StageAfterScript)
	}
	last := []string{StageArchiveCache, StageUploadArtifacts}
	if err != nil {
		last = []string{StageArchiveCacheOnFailure, StageUploadArtifactsOnFailure}
	}
	for _, stage := range append(last, StageCleanupFileVariables) {
		if failed := b.runScript(ctx, a, stage); err == nil {
			err = failed
		}
	}
	return err
}

// runScript runs a stage's script, if it has one and the job is not canceled.
func (b *Build) runScript(ctx context.Context, a *attempt, stage string) error {
	body, ok := b.job.Scripts[stage]
	if !ok {
		return nil
	}
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

// cleanup runs also when the job is canceled, and its failure changes nothing.
// Its output is the admin's. Then the attempt's directory goes.
func (b *Build) cleanup(a *attempt) {
	var text lockedBuilder
	e := b.execute(context.Background(), a, execution{
		stage: "cleanup", timeout: b.runner.StageTimeout, stdout: &text, stderr: &text,
		env: b.environment(a, b.directories(a)),
	})
	b.runnerLog.WriteString(text.String())
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
