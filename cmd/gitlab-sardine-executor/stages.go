package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/diagnose"
	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/executor/adminlog"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

const stageCategory = "Called by GitLab Runner"

// A stage exits within two seconds of a signal, with the right status even if it
// hangs: GitLab Runner believes the exit status of a stage even after SIGTERM.
// signalGrace is the time to end in an orderly way, flushGrace the time to write the
// last line of the log.
const (
	signalGrace = 1900 * time.Millisecond
	flushGrace  = 50 * time.Millisecond
)

// stageExample shows how config.toml of GitLab Runner calls a stage.
func stageExample(name string) string {
	return fmt.Sprintf(`Example, in GitLab Runner's config.toml:
  [runners.custom]
    %[1]s_exec = "/usr/bin/gitlab-sardine-executor"
    %[1]s_args = ["%[1]s"]`, name)
}

func configCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "config",
		Category:    stageCategory,
		Usage:       "tell the runner about the guest (config_exec)",
		Description: stageExample("config"),
		Subcommands: diagnose.Config(cfg, stdout),
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("config has no command %q, only print and check", c.Args().First())
			}
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Config(stdout) })
		},
	}
}

func prepareCommand(cfg *command.Settings, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "prepare",
		Category:    stageCategory,
		Usage:       "pull the job's image, start its machine and wait for the guest (prepare_exec)",
		Description: stageExample("prepare"),
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Prepare(c.Context) })
		},
	}
}

func runCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "run",
		Category:    stageCategory,
		Usage:       "run a script in the job's machine (run_exec)",
		Description: stageExample("run"),
		ArgsUsage:   "SCRIPT STAGE",
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error {
				if c.NArg() < 1 {
					return errors.New("run needs the path of a script and the name of a stage: GitLab Runner appends them to run_args")
				}
				d.OneLog = true // of the job
				return d.Run(c.Context, c.Args().Get(0), c.Args().Get(1), stdout, stderr)
			})
		},
	}
}

func cleanupCommand(cfg *command.Settings, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "cleanup",
		Category:    stageCategory,
		Usage:       "remove the job's machine (cleanup_exec)",
		Description: stageExample("cleanup"),
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Cleanup(c.Context) })
		},
	}
}

// stage runs one of GitLab Runner's stages and turns its error into the last line that the
// driver writes to the job log, and an exit status.
func stage(c *cli.Context, cfg *command.Settings, stderr io.Writer, run func(*executor.Driver) error) error {
	log := joblog.NewGitLab(stderr)
	// Ignore further signals: prepare has to remove its machine, and exitInTime ends
	// a stage that hangs.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(c.Context, func() { exitInTime(log) })
	settings, err := cfg.Load()
	if err != nil {
		return finish(log, err)
	}
	j, err := job.FromEnv(os.Environ())
	if err != nil {
		return finish(log, err)
	}
	// No job fails if the log cannot be opened. cleanup, which runs after each job,
	// warns the administrator.
	logger, closer, _ := cfg.OpenAdminLog(settings, adminlog.Options{
		Stderr: stderr, IsRunner: c.Command.Name == "cleanup", Secrets: j.Secrets(),
	})
	defer closer.Close()
	job.ForgetVariables()
	began := time.Now()
	driver := &executor.Driver{Version: programVersion(), Settings: settings, Job: j, Log: log, Admin: logger}
	err = run(driver)
	if err := driver.WriteMetrics(); err != nil {
		logger.Warn("cannot write metrics", "error", err)
	}
	if err != nil && c.Context.Err() != nil {
		logger.Debug("error after the signal", "error", err)
	}
	err = resultAfterSignal(c, signals, err)
	logStage(logger, c.Command.Name, j, time.Since(began), err)
	return finish(log, err)
}

// exitInTime exits when signalGrace is over. It does not wait for the log either, which
// blocks if its reader is gone.
func exitInTime(log *joblog.Log) {
	time.Sleep(signalGrace)
	go failure.Report(log, failure.ErrCancelled)
	time.Sleep(flushGrace)
	os.Exit(failure.ExitCodesFromEnv().System)
}

// resultAfterSignal replaces the error of a stage that got a signal by the signal. That
// includes nil, because the job would go on. A cleanup that succeeded has succeeded:
// nothing follows it.
func resultAfterSignal(c *cli.Context, signals <-chan os.Signal, err error) error {
	cause := context.Cause(c.Context)
	if gotSignal(signals) {
		cause = failure.ErrCancelled // perhaps too late for the context
	}
	if !errors.Is(cause, failure.ErrCancelled) || err == nil && c.Command.Name == "cleanup" {
		return err
	}
	return cause
}

// gotSignal reports whether a signal is in the channel, after what the kernel has delivered
// to this process has got there: [signal.Stop] waits for that.
func gotSignal(signals <-chan os.Signal) bool {
	another := make(chan os.Signal, 1)
	signal.Notify(another, syscall.SIGTERM, syscall.SIGINT)
	signal.Stop(another)
	select {
	case <-signals:
		return true
	default:
		return false
	}
}

// logStage logs for the administrator how a stage ended.
func logStage(logger *slog.Logger, name string, j job.Job, took time.Duration, err error) {
	logger = logger.With("stage", name, "job", j.ID, "project", j.Project, "image", j.Image, "seconds", took.Seconds())
	var script failure.ScriptError
	switch {
	case err == nil:
		logger.Info("stage done")
	case errors.As(err, &script):
		logger.Info("stage done", "status", int(script))
	case errors.Is(err, failure.ErrCancelled):
		logger.Info("stage canceled", "reason", err)
	default:
		logger.Error("stage failed", "class", failure.Classify(err).String(), "error", err)
	}
}

// noScript is the exit code of a job that failed before its script did. GitLab Runner
// uses the same where no file names another.
const noScript failure.ScriptError = 1

// finish writes the driver's last line in the job log and returns the exit status.
func finish(log *joblog.Log, err error) error {
	if err == nil {
		return nil
	}
	codes := failure.ExitCodesFromEnv()
	status := noScript
	isScript := errors.As(err, &status)
	if codes.Of(err) == codes.Build {
		// Always: an earlier stage may have left its status there.
		if failed := failure.WriteExitCode(os.Getenv("BUILD_EXIT_CODE_FILE"), int(status)); failed != nil {
			err, isScript = failed, false
		}
	}
	if !isScript {
		failure.Report(log, err)
	}
	return command.ExitError{Status: codes.Of(err)}
}

func tryCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "try",
		Usage:     "run one job through all stages on this host, without GitLab",
		ArgsUsage: "IMAGE [-- COMMAND...]",
		Description: command.Describe(imageArgument+"The default for COMMAND is uname -a. The exit status is that of the command.",
			"try registry.example.com/vms/debian:12 -- cat /etc/os-release"),
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 {
				return errors.New("try needs an image: try IMAGE [-- COMMAND...]")
			}
			return try(c.Context, cfg, c.Args().First(), commandOf(c.Args().Tail()), stdout, stderr)
		},
	}
}

// commandOf drops the -- before the command.
func commandOf(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func try(ctx context.Context, cfg *command.Settings, image string, argv []string, stdout, stderr io.Writer) error {
	log := joblog.New(stderr)
	settings, err := cfg.Load()
	if err != nil {
		return finish(log, err)
	}
	logger, closer, err := cfg.OpenAdminLog(settings, adminlog.Options{Stderr: stderr})
	if err != nil {
		log.Warn("%v", err)
	}
	defer closer.Close()
	err = admin.Try(ctx, admin.TryOptions{
		Version: programVersion(), Settings: settings, Image: image, Command: argv,
		Stdout: stdout, Stderr: stderr, Log: log, Admin: logger,
	})
	var script failure.ScriptError
	if errors.As(err, &script) {
		return command.ExitError{Status: int(script)}
	}
	return finish(log, err)
}
