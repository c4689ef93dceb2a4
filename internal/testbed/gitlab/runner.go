package gitlab

import (
	"context"
	"os"
	"sync"
	"syscall"
	"time"
)

// What GitLab Runner takes for exit codes; the driver learns them from its
// environment.
const (
	BuildFailureExitCode  = 1
	SystemFailureExitCode = 2
)

// PrepareAttempts is how often a job's preparation is tried.
const PrepareAttempts = 3

// A Runner is a [[runners]] section with executor = "custom" in the config.toml
// of GitLab Runner. The zero value of a field is the default that stands there.
type Runner struct {
	// Exec is config_exec, prepare_exec, run_exec and cleanup_exec in one: the
	// path of the driver. Args come before the stage's name: the runner's
	// config_args would be Args and "config".
	Exec string
	Args []string

	// Env is the runner's own environment, which the driver inherits; nil is that
	// of this process.
	Env []string
	// Credential is the user as whom runner and driver run; nil is the caller. To
	// name another one needs root.
	Credential *syscall.Credential
	// Dir is where the directories of the attempts are made (os.TempDir). The user
	// of Credential must be able to reach it.
	Dir string

	// BuildsDir and CacheDir are builds_dir and cache_dir, which hold where the
	// driver's config names no others.
	BuildsDir, CacheDir string

	// StageTimeout is config_exec_timeout, prepare_exec_timeout and
	// cleanup_exec_timeout (1 h).
	StageTimeout time.Duration
	// GracefulKillTimeout and ForceKillTimeout are what a stage gets from SIGTERM
	// to SIGKILL, and after it (10 min each).
	GracefulKillTimeout, ForceKillTimeout time.Duration
	// FinishTimeout is how long the stages of a canceled job may take to end before
	// cleanup is started beside them (5 min).
	FinishTimeout time.Duration
	// PrepareWait is the time between two attempts to prepare. It is 3 s in GitLab
	// Runner and 0 here, where no test wants to wait.
	PrepareWait time.Duration
	// OutputTimeout is how long a stage's output may stay open after its process
	// has ended (1 min). GitLab Runner waits for ever.
	OutputTimeout time.Duration
}

// Run runs a job to its end. A done context cancels the job.
func (r Runner) Run(ctx context.Context, job Job) Result {
	return r.Start(ctx, job).Wait()
}

// Start starts a job.
func (r Runner) Start(ctx context.Context, job Job) *Build {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &Build{
		runner:     r.withDefaults(),
		job:        job.withDefaults(),
		cancel:     cancel,
		done:       make(chan struct{}),
		canceling:  make(chan struct{}),
		scriptOver: make(chan struct{}),
	}
	b.cancelGraceful = sync.OnceFunc(func() { close(b.canceling) })
	b.expireScript = sync.OnceFunc(func() { close(b.scriptOver) })
	b.log = newTrace(b.job.secrets()...)
	go func() {
		defer close(b.done)
		defer cancel(nil)
		b.run(ctx)
	}()
	return b
}

// Stage runs the driver once for a stage of a job, out of any order, in a
// directory of its own: "cleanup" is what follows when the runner itself has
// died, and "run" takes the script and the name of its stage as arguments.
func (r Runner) Stage(ctx context.Context, job Job, stage string, args ...string) Execution {
	b := &Build{runner: r.withDefaults(), job: job.withDefaults(), log: newTrace()}
	a, err := b.newAttempt(1)
	if err != nil {
		return Execution{Stage: stage, Err: err}
	}
	defer os.RemoveAll(a.dir)
	return b.execute(ctx, a, execution{
		stage: stage, args: args, timeout: b.runner.StageTimeout, env: b.environment(a, b.directories(a)),
	})
}

func (r Runner) withDefaults() Runner {
	if r.Env == nil {
		r.Env = os.Environ()
	}
	if r.Dir == "" {
		r.Dir = os.TempDir()
	}
	setDefault(&r.StageTimeout, time.Hour)
	setDefault(&r.GracefulKillTimeout, 10*time.Minute)
	setDefault(&r.ForceKillTimeout, 10*time.Minute)
	setDefault(&r.FinishTimeout, 5*time.Minute)
	setDefault(&r.OutputTimeout, time.Minute)
	return r
}

func setDefault[T comparable](value *T, unset T) {
	var zero T
	if *value == zero {
		*value = unset
	}
}
