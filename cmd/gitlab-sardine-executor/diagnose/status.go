package diagnose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/status"
)

// statusFlags are the flags of status.
type statusFlags struct {
	asJSON   bool
	watch    bool
	interval time.Duration
}

// minInterval keeps status --watch from asking libvirt without a pause.
const minInterval = 100 * time.Millisecond

// clearScreen moves to the top of a terminal and clears it.
const clearScreen = "\x1b[H\x1b[2J"

// Status is the command status.
func Status(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &statusFlags{}
	return &cli.Command{
		Name:  "status",
		Usage: "show machines, waiting jobs, pulls, images, room and the last failures",
		Description: command.Describe("Run it as the user that runs GitLab Runner. Failures are read from log_file; without that setting they are not known.\n"+
			"On a terminal the output has colours, unless NO_COLOR is set. What cannot be found out is a warning on stderr.\n\n"+
			"With --json it prints an object; docs/status.md describes the fields. --json --watch prints one object per line.",
			"status", "status --watch", "status --json"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON", Destination: &f.asJSON},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "repeat until Ctrl-C", Destination: &f.watch},
			&cli.DurationFlag{Name: "interval", Usage: "with --watch, repeat every `TIME`", Value: 2 * time.Second, Destination: &f.interval},
		},
		Action: command.WithArguments(0, 0, func(c *cli.Context, _ []string) error {
			if f.interval < minInterval {
				return fmt.Errorf("--interval %s: want %s or more", f.interval, minInterval)
			}
			settings, err := cfg.Load()
			if err != nil {
				return err
			}
			return showStatus(c.Context, settings, f, stdout, stderr)
		}),
	}
}

// showStatus prints the status once, or until the context ends.
func showStatus(ctx context.Context, settings *config.Settings, f *statusFlags, stdout, stderr io.Writer) error {
	isTerminal := isTerminal(stdout)
	for {
		s, err := status.Collect(ctx, settings)
		if f.watch && ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = printStatus(s, f, isTerminal, stdout, stderr)
		}
		if err != nil || !f.watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(f.interval):
		}
	}
}

func printStatus(s *status.Status, f *statusFlags, isTerminal bool, stdout, stderr io.Writer) error {
	if f.asJSON {
		e := json.NewEncoder(stdout)
		e.SetEscapeHTML(false)
		if !f.watch {
			e.SetIndent("", "  ")
		}
		return e.Encode(s)
	}
	text := statusText(s, painter(isTerminal && wantsColours()))
	switch {
	case f.watch && isTerminal:
		text = clearScreen + text
	case f.watch:
		text += "\n"
	}
	_, err := io.WriteString(stdout, text)
	for _, p := range s.Problems {
		_, failed := fmt.Fprintf(stderr, "WARNING: %s\n", command.EscapeControl(p))
		err = errors.Join(err, failed)
	}
	return err
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// wantsColours: see https://no-color.org.
func wantsColours() bool { return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" }
