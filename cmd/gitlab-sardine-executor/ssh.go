package main

import (
	"context"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
)

func sshCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "ssh",
		Usage:     "open a shell in the machine of a job on this host",
		ArgsUsage: "JOB",
		Description: command.Describe("JOB is the number of a job, or the name of its machine. A machine runs as long as its job, and after a\n"+
			"failed job for the time of the setting keep_on_failure. The exit status is the shell's.",
			"ssh 4711"),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			return sshToMachine(c.Context, cfg, args[0], stdout, stderr)
		}),
	}
}

func sshToMachine(ctx context.Context, cfg *command.Settings, job string, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	status, err := admin.SSH(ctx, settings, job, os.Stdin, stdout, stderr)
	if err == nil && status != 0 {
		return command.ExitError{Status: status}
	}
	return err
}
