package main

import (
	"context"
	"fmt"
	"io"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"

	"github.com/urfave/cli/v2"
)

func doctorCommand(cfg *command.Settings, stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "doctor",
		Usage:       "check whether jobs can run on this host",
		Description: command.Describe("Run it as the user that runs GitLab Runner. The exit status is 1 if no job can run.", "doctor"),
		Action:      func(c *cli.Context) error { return doctor(c.Context, cfg, stdout) },
	}
}

func doctor(ctx context.Context, cfg *command.Settings, stdout io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	worst := admin.OK
	for _, f := range admin.Doctor(ctx, settings) {
		worst = max(worst, f.Level)
		fmt.Fprintf(stdout, "%-8s %-14s %s\n", f.Level, f.Part, f.Text)
	}
	if worst == admin.Error {
		return command.ExitError{Status: 1}
	}
	return nil
}
