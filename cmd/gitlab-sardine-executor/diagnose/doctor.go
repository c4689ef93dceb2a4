// Package diagnose has the commands that describe this host and its settings.
package diagnose

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/doctor"

	"github.com/urfave/cli/v2"
)

// Doctor is the command doctor.
func Doctor(cfg *command.Settings, stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "check whether jobs can run on this host",
		Description: command.Describe("Run it as the user that runs GitLab Runner. Findings come with a command that mends them, where there is one.\n"+
			"The exit status is 1 if no job can run.\n\n"+
			"With --json it prints an object with the worst level (ok, warning or error) and findings, each with part, level, text and, perhaps, command.", "doctor", "doctor --json"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *cli.Context) error { return examine(c.Context, cfg, stdout, c.Bool("json")) },
	}
}

func examine(ctx context.Context, cfg *command.Settings, stdout io.Writer, asJSON bool) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	findings := doctor.Examine(ctx, settings)
	worst := doctor.OK
	for _, f := range findings {
		worst = max(worst, f.Level)
	}
	if asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(struct {
			Level    doctor.Level     `json:"level"`
			Findings []doctor.Finding `json:"findings"`
		}{worst, findings})
	} else {
		for _, f := range findings {
			fmt.Fprintf(stdout, "%-8s %-14s %s\n", f.Level, f.Part, f.Text)
			if f.Command != "" {
				fmt.Fprintf(stdout, "%-8s %-14s $ %s\n", "", "", f.Command)
			}
		}
	}
	if err != nil {
		return err
	}
	if worst == doctor.Error {
		return command.ExitError{Status: 1}
	}
	return nil
}
