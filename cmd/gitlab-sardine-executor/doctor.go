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
		Usage:       "look whether jobs can run on this host, and how well",
		Description: "Run it as the user as whom GitLab Runner runs. The exit status is 1 if no job can run.",
		Action:      func(c *cli.Context) error { return doctor(c.Context, cfg, stdout) },
	}
}

func doctor(ctx context.Context, cfg *settingsFlags, stdout io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	worst := admin.Good
	for _, f := range admin.Doctor(ctx, settings) {
		worst = max(worst, f.Level)
		fmt.Fprintf(stdout, "%-8s %-14s %s\n", f.Level, f.Part, f.Text)
	}
	if worst == admin.Broken {
		return exitError{1}
	}
	return nil
}
