package admin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

// TryOptions configure [Try].
type TryOptions struct {
	Version  string
	Settings *config.Settings
	Image    string
	// Command with its arguments; the default prints the system of the guest.
	Command []string
	// Stdout and Stderr get the output of the command, Log that of the stages.
	Stdout, Stderr io.Writer
	Log            *joblog.Log
	Admin          *slog.Logger
}

// Try runs one job through all four stages on this host, as GitLab Runner does, and
// logs how long each took. cleanup always runs. The error is an [failure.ScriptError]
// if only the command failed.
func Try(ctx context.Context, o TryOptions) (err error) {
	host, _ := os.Hostname()
	d := &executor.Driver{
		Version:  o.Version,
		Settings: o.Settings,
		Log:      o.Log,
		Admin:    o.Admin,
		Local:    true,
		Job: job.Job{
			ID:      strconv.FormatUint(rand.Uint64N(1<<40)+1, 10),
			Server:  "try://" + host,
			Project: "try",
			Owner:   job.Owner{Instance: "try://" + host, Project: "0", Path: "try"},
			Image:   o.Image,
			Timeout: job.DefaultTimeout,
		},
	}
	dir, err := os.MkdirTemp("", "sardine-try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte(guestshell.For(o.Settings.For(o.Image).Shell).JobScript(o.Command)), 0o600); err != nil {
		return err
	}
	defer func() {
		// Also after Ctrl-C, which must not leave the machine.
		cleanup := tryStage(o.Log, "cleanup", func() error { return d.Cleanup(context.WithoutCancel(ctx)) })
		err = joinOnce(err, cleanup)
	}()
	stages := []struct {
		name string
		run  func() error
	}{
		{"config", func() error { return d.Config(io.Discard) }},
		{"prepare", func() error { return d.Prepare(ctx) }},
		{"run build_script", func() error { return d.Run(ctx, script, "build_script", o.Stdout, o.Stderr) }},
	}
	for _, stage := range stages {
		if err := tryStage(o.Log, stage.name, stage.run); err != nil {
			return err
		}
	}
	return nil
}

// tryStage runs a stage and logs its start, end and duration.
func tryStage(log *joblog.Log, name string, run func() error) error {
	log.Say("==> %s", name)
	began := time.Now()
	err := run()
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	log.Say("<== %s %s in %.2f s", name, outcome, time.Since(began).Seconds())
	return err
}

// joinOnce joins the errors of prepare and cleanup; one if both failed for the same reason, such
// as a libvirt that is down.
func joinOnce(prepare, cleanup error) error {
	if prepare != nil && cleanup != nil && prepare.Error() == cleanup.Error() {
		return prepare
	}
	return errors.Join(prepare, cleanup)
}
