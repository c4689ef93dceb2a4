package main

import (
	"context"
	"fmt"
	"io"

	"gitlab-sardine-executor/executor/admin"

	"github.com/urfave/cli/v2"
)

func sweepCommand(cfg *settingsFlags, stdout io.Writer) *cli.Command {
	var all, dryRun bool
	return &cli.Command{
		Name:  "sweep",
		Usage: "remove machines and files that no job owns any more",
		Description: "A runner that was killed, or a host that lost power, can leave machines whose jobs are over.\n" +
			"sweep removes those that have expired (job timeout and an hour) and files without a machine.\n" +
			"prepare does the same each time. Other domains are never touched.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "remove the machines of running jobs, too", Destination: &all},
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be removed", Destination: &dryRun},
		},
		Action: func(c *cli.Context) error { return sweep(c.Context, cfg, all, dryRun, stdout) },
	}
}

func sweep(ctx context.Context, cfg *settingsFlags, all, dryRun bool, stdout io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	swept, err := admin.Sweep(ctx, settings, all, dryRun)
	for _, s := range swept {
		fmt.Fprintf(stdout, "%s\t%s\n", s.Machine, s.Reason)
	}
	return err
}
