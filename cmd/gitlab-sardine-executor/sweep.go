package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/vm"
)

// sweepTimeout bounds a whole sweep.
const sweepTimeout = 10 * time.Minute

func sweepCommand(cfg *settingsFlags, stdout io.Writer) *cli.Command {
	o := &executor.SweepOptions{}
	return &cli.Command{
		Name:  "sweep",
		Usage: "remove machines and files that no job owns any more",
		Description: "A runner that was killed, or a host that lost power, can leave machines whose jobs are over.\n" +
			"sweep removes those that have expired (job timeout and an hour) and files without a machine.\n" +
			"prepare does the same each time. Other domains are never touched.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "remove the machines of running jobs, too", Destination: &o.All},
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be removed", Destination: &o.DryRun},
		},
		Action: func(c *cli.Context) error { return sweep(c.Context, cfg, *o, stdout) },
	}
}

func sweep(ctx context.Context, cfg *settingsFlags, o executor.SweepOptions, stdout io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	dirs, err := settings.Dirs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	host, err := vm.Open(ctx, settings.Defaults.Connect)
	if err != nil {
		return err
	}
	defer host.Close()
	metrics := &metrics.Changes{}
	o.Now, o.Metrics = time.Now(), metrics
	swept, err := executor.Sweep(ctx, host, dirs, o)
	for _, s := range swept {
		fmt.Fprintf(stdout, "%s\t%s\n", s.Machine, s.Reason)
	}
	return errors.Join(err, metrics.Write(settings.Defaults.MetricsTextfile))
}
