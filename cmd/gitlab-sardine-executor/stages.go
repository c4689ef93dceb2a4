package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/executor/adminlog"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

const stageCategory = "Called by GitLab Runner"

// signalGrace is how long a stage may take to end after a signal. GitLab Runner
// believes the exit status of a stage even after SIGTERM, so that one which
// hangs has to end with the right status all the same. lastWord is how long it may
// take to say so.
const (
	signalGrace = 1900 * time.Millisecond
	lastWord    = 50 * time.Millisecond
)

func configCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:     "config",
		Category: stageCategory,
		Usage:    "tell the runner about the guest (config_exec)",
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Config(stdout) })
		},
	}
}

func prepareCommand(cfg *settingsFlags, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:     "prepare",
		Category: stageCategory,
		Usage:    "pull the job's image, start its machine and wait for the guest (prepare_exec)",
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Prepare(c.Context) })
		},
	}
}

func runCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "run",
		Category:  stageCategory,
		Usage:     "run a script in the job's machine (run_exec)",
		ArgsUsage: "SCRIPT STAGE",
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error {
				if c.NArg() < 1 {
					return errors.New("run needs the path of a script and the name of a stage, which GitLab Runner appends to run_args")
				}
				return d.Run(c.Context, c.Args().Get(0), c.Args().Get(1), stdout, stderr)
			})
		},
	}
}

func cleanupCommand(cfg *settingsFlags, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:     "cleanup",
		Category: stageCategory,
		Usage:    "remove the job's machine (cleanup_exec)",
		Action: func(c *cli.Context) error {
			return stage(c, cfg, stderr, func(d *executor.Driver) error { return d.Cleanup(c.Context) })
		},
	}
}

// stage runs one of the runner's stages and turns its error into the last line
// of the job log and an exit status.
func stage(c *cli.Context, cfg *settingsFlags, stderr io.Writer, run func(*executor.Driver) error) error {
	log := joblog.NewGitLab(stderr)
	// A second signal changes nothing: prepare has to undo what it did, and
	// exitInTime ends what hangs.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(c.Context, func() { exitInTime(log) })
	settings, err := cfg.load()
	if err != nil {
		return finish(log, err)
	}
	j, err := job.FromEnv(os.Environ())
	if err != nil {
		return finish(log, err)
	}
	// A log that cannot be opened is the administrator's business: cleanup, which each
	// job has, tells them.
	admin, closer, _ := cfg.openAdminLog(settings, adminlog.Options{
		Stderr: stderr, IsRunner: c.Command.Name == "cleanup", Secrets: j.Secrets(),
	})
	defer closer.Close()
	job.ForgetVariables()
	began := time.Now()
	driver := &executor.Driver{Version: programVersion(), Settings: settings, Job: j, Log: log, Admin: admin}
	err = run(driver)
	if err := driver.WriteMetrics(); err != nil {
		admin.Warn("metrics are lost", "error", err)
	}
	if err != nil && c.Context.Err() != nil {
		admin.Debug("what the signal interrupted", "error", err)
	}
	logStage(admin, c.Command.Name, j, time.Since(began), told(c, err))
	return finish(log, told(c, err))
}

// exitInTime ends the program when the time is over that a stage has after a signal,
// whatever hangs: the log itself may, if nobody reads it.
func exitInTime(log *joblog.Log) {
	time.Sleep(signalGrace)
	go executor.ReportFailure(log, executor.ErrCancelled)
	time.Sleep(lastWord)
	os.Exit(executor.ExitCodesFromEnv().System)
}

// told is how a stage ends for GitLab Runner. One that was told to end has failed,
// also if all of it succeeded: the job would go on. Only a cleanup that has done all
// of its work is done: nobody goes on after it, and there is nothing to warn of.
func told(c *cli.Context, err error) error {
	cause := context.Cause(c.Context)
	if !errors.Is(cause, executor.ErrCancelled) || err == nil && c.Command.Name == "cleanup" {
		return err
	}
	return cause
}

// logStage tells the administrator how a stage ended.
func logStage(admin *slog.Logger, name string, j job.Job, took time.Duration, err error) {
	admin = admin.With("stage", name, "job", j.ID, "project", j.Project, "image", j.Image, "seconds", took.Seconds())
	var script executor.ScriptError
	switch {
	case err == nil:
		admin.Info("stage done")
	case errors.As(err, &script):
		admin.Info("stage done", "status", int(script))
	default:
		admin.Error("stage failed", "class", executor.Classify(err).String(), "error", err)
	}
}

// noScript is the exit code of a job that failed without a script of its having done
// so: GitLab Runner's own, where no file tells it another.
const noScript executor.ScriptError = 1

// finish says how a job's stage ended and makes the exit status of it.
func finish(log *joblog.Log, err error) error {
	if err == nil {
		return nil
	}
	codes := executor.ExitCodesFromEnv()
	status := noScript
	isScript := errors.As(err, &status)
	if codes.Of(err) == codes.Build {
		// Whatever failed: an earlier stage may have left its status there.
		if failed := executor.WriteExitCode(os.Getenv("BUILD_EXIT_CODE_FILE"), int(status)); failed != nil {
			err, isScript = failed, false
		}
	}
	if !isScript {
		executor.ReportFailure(log, err)
	}
	return exitError{codes.Of(err)}
}

func tryCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "try",
		Usage:     "run one job through all stages on this machine, without GitLab",
		ArgsUsage: "IMAGE [-- COMMAND...]",
		Description: "IMAGE is what a job would name (REGISTRY/NAME:TAG), or oci:PATH[:TAG], an OCI layout on this machine.\n" +
			"Without COMMAND, uname -a runs in the guest. The exit status is the command's.",
		Action: func(c *cli.Context) error {
			if c.NArg() < 1 {
				return errors.New("try needs an image: try IMAGE [-- COMMAND...]")
			}
			return try(c.Context, cfg, c.Args().First(), commandOf(c.Args().Tail()), stdout, stderr)
		},
	}
}

// commandOf drops the -- that ends our own arguments.
func commandOf(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func try(ctx context.Context, cfg *settingsFlags, image string, command []string, stdout, stderr io.Writer) error {
	log := joblog.New(stderr)
	settings, err := cfg.load()
	if err != nil {
		return finish(log, err)
	}
	logger, closer, err := cfg.openAdminLog(settings, adminlog.Options{Stderr: stderr})
	if err != nil {
		log.Warn("%v", err)
	}
	defer closer.Close()
	err = admin.Try(ctx, admin.TryOptions{
		Version: programVersion(), Settings: settings, Image: image, Command: command,
		Stdout: stdout, Stderr: stderr, Log: log, Admin: logger,
	})
	var script executor.ScriptError
	if errors.As(err, &script) {
		return exitError{int(script)}
	}
	return finish(log, err)
}
