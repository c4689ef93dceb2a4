//go:build packaging

package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// A build with the tag packaging, and without urfave_cli_no_docs, writes the files of packages
// that describe the command line: the man page and the completions for fish.
func init() {
	write := func(name string, text func(*cli.App) (string, error)) *cli.Command {
		return &cli.Command{
			Name: name, Hidden: true,
			Action: func(c *cli.Context) error {
				app := newApp(io.Discard, io.Discard)
				out, err := text(app)
				if err == nil {
					_, err = fmt.Fprint(c.App.Writer, out)
				}
				return err
			},
		}
	}
	packagingCommands = []*cli.Command{
		write("man-page", func(app *cli.App) (string, error) { return app.ToManWithSection(8) }),
		write("fish-completion", (*cli.App).ToFishCompletion),
	}
}
