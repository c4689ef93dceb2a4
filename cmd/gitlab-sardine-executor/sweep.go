package main

import (
	"context"
	"fmt"
	"io"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"

	"github.com/urfave/cli/v2"
)

func sweepCommand(cfg *command.Settings, stdout io.Writer) *cli.Command {
	var all, dryRun bool
	return &cli.Command{
		Name:  "sweep",
		Usage: "remove machines and files that no job owns",
		Description: command.Describe("A killed runner or a power failure can leave machines of jobs that have ended. sweep removes machines that\n"+
			"have expired (the timeout of the job plus one hour) and files without a machine. Each prepare does the same.\n"+
			"sweep also gives back the addresses that libvirt networks reserve for machines of jobs and that no machine has.\n"+
			"sweep never touches other domains.",
			"sweep --dry-run"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "also remove the machines of running jobs", Destination: &all},
			&cli.BoolFlag{Name: "dry-run", Usage: "only list what would be removed", Destination: &dryRun},
		},
		Action: func(c *cli.Context) error { return sweep(c.Context, cfg, all, dryRun, stdout) },
	}
}

func sweep(ctx context.Context, cfg *command.Settings, all, dryRun bool, stdout io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	swept, err := admin.Sweep(ctx, settings, all, dryRun)
	for _, s := range swept {
		fmt.Fprintf(stdout, "%s\t%s\n", s.Machine, s.Reason)
	}
	return err
}
