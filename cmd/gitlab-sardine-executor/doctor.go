package main

import (
	"context"
	"fmt"
	"io"

	"gitlab-sardine-executor/executor/admin"

	"github.com/urfave/cli/v2"
)

func doctorCommand(cfg *settingsFlags, stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:        "doctor",
		Usage:       "check whether jobs can run on this host",
		Description: describe("Run it as the user that runs GitLab Runner. The exit status is 1 if no job can run.", "doctor"),
		Action:      func(c *cli.Context) error { return doctor(c.Context, cfg, stdout) },
	}
}

func doctor(ctx context.Context, cfg *settingsFlags, stdout io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	worst := admin.OK
	for _, f := range admin.Doctor(ctx, settings) {
		worst = max(worst, f.Level)
		fmt.Fprintf(stdout, "%-8s %-14s %s\n", f.Level, f.Part, f.Text)
	}
	if worst == admin.Error {
		return exitError{1}
	}
	return nil
}
