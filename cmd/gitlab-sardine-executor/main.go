// Command gitlab-sardine-executor runs GitLab CI jobs in fresh virtual machines. It is
// a driver for GitLab Runner's custom executor, with commands for administrators and
// image makers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/daemon"
	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/diagnose"
	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/makeimage"
	"gitlab-sardine-executor/executor/failure"
)

// version and commit are set by the Makefile.
var version, commit string

// packagingCommands are those of builds with the tag packaging.
var packagingCommands []*cli.Command

func main() {
	// A stack trace would be written to the job's log and confuse its author.
	debug.SetTraceback("none")
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run runs one command and returns the exit status.
func run(args []string, stdout, stderr io.Writer) (status int) {
	codes := failure.ExitCodesFromEnv()
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(stderr, "ERROR: internal error, please report it: %v\n", p)
			status = codes.System
		}
	}()
	ctx, stop := signalContext()
	defer stop()
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, args)
	var exit command.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Status
	}
	fmt.Fprintf(stderr, "gitlab-sardine-executor: %s\n", command.EscapeControl(err.Error(), '\n', '\t'))
	return 1
}

// signalContext returns a context that the first SIGTERM or SIGINT cancels. The second
// ends the program, except in a stage, which asks for signals itself.
func signalContext() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		signal.Stop(signals)
		cancel(failure.ErrCancelled)
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

func newApp(stdout, stderr io.Writer) *cli.App {
	cfg := &command.Settings{}
	app := &cli.App{
		Name:            "gitlab-sardine-executor",
		Usage:           "run each GitLab CI job in a fresh virtual machine",
		Version:         programVersion(),
		HideHelpCommand: true,
		// packaging/completion has the functions of the shells.
		EnableBashCompletion: true,
		Writer:               stdout,
		ErrWriter:            stderr,
		Flags:                cfg.Flags(),
		Commands: []*cli.Command{
			configCommand(cfg, stdout, stderr),
			prepareCommand(cfg, stderr),
			runCommand(cfg, stdout, stderr),
			cleanupCommand(cfg, stderr),
			tryCommand(cfg, stdout, stderr),
			sshCommand(cfg, stdout, stderr),
			imagesCommand(cfg, stdout, stderr),
			inspectCommand(cfg, stdout, stderr),
			pruneCommand(cfg, stdout),
			importCommand(cfg, stdout, stderr),
			cloneCommand(cfg, stdout, stderr),
			exportCommand(cfg, stdout, stderr),
			makeimage.Build(cfg, imageCategory, stdout, stderr),
			loginCommand(cfg, stdout, stderr),
			logoutCommand(stdout),
			fetchCommand(cfg, stdout, stderr),
			pushCommand(cfg, stdout, stderr),
			pullCommand(cfg, stdout, stderr),
			sweepCommand(cfg, stdout),
			daemon.Serve(cfg, programVersion(), stderr),
			diagnose.Doctor(cfg, stdout),
			diagnose.Status(cfg, stdout, stderr),
			diagnose.Version(cfg, programVersion(), commit, stdout),
		},
		// run sets the exit status, not the library.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return fmt.Errorf("%w (gitlab-sardine-executor --help lists commands and flags)", err)
		},
	}
	app.Commands = append(app.Commands, packagingCommands...)
	return app
}

// programVersion is the version from the Makefile, or the revision that Go recorded.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
