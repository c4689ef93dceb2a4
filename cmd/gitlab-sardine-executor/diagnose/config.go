package diagnose

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/config/origin"
)

// Config are the commands below config, the stage.
func Config(cfg *command.Settings, stdout io.Writer) []*cli.Command {
	return []*cli.Command{
		{
			Name:  "print",
			Usage: "print the settings that apply, and where each comes from",
			Description: command.Describe("Prints TOML. With --image, the settings for the jobs of that image follow, under [[image]].\n"+
				"Passwords are masked.", "config print", "config print --image registry.example.com/vms/debian:12"),
			Flags: []cli.Flag{&cli.StringFlag{Name: "image", Usage: "print the settings for `IMAGE`, too, as a job names it"}},
			Action: func(c *cli.Context) error {
				if c.Args().Present() {
					return fmt.Errorf("config print takes no arguments: %s", c.Args().First())
				}
				s, err := cfg.Load()
				if err != nil {
					return err
				}
				return origin.Print(stdout, s, c.String("image"))
			},
		},
		{
			Name:        "check",
			Usage:       "check a settings file",
			ArgsUsage:   "[FILE]",
			Description: command.Describe("Without FILE, checks the file that jobs would read. doctor also checks what the settings mean for this host.", "config check /etc/gitlab-sardine-executor/config.toml"),
			Action: func(c *cli.Context) error {
				if c.NArg() > 1 {
					return errors.New("config check takes one file")
				}
				s, err := cfg.Load()
				if c.Args().Present() {
					s, err = config.Load(c.Args().First())
				}
				if err != nil {
					return err
				}
				for _, alias := range s.Aliases() {
					fmt.Fprintf(stdout, "%s: %s is an old name; rename it to %s\n", s.Path, alias.Old, alias.New)
				}
				if s.Path == "" {
					_, err = fmt.Fprintln(stdout, "no file; every setting has its default")
				} else {
					_, err = fmt.Fprintf(stdout, "%s: ok\n", s.Path)
				}
				return err
			},
		},
	}
}
