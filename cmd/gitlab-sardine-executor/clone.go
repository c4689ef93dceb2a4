package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/vm/define"
)

// cloneFlags are the flags of clone.
type cloneFlags struct {
	start   string
	mac     string
	outdir  string
	omit    string
	connect string
	quiet   bool
}

func cloneCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &cloneFlags{}
	return &cli.Command{
		Name:      "clone",
		Category:  imageCategory,
		Usage:     "clone a defined virtual machine, copy-on-write",
		ArgsUsage: "SOURCE [TARGET]",
		Description: command.Describe("The disks of the clone are overlays on the disks of SOURCE. SOURCE must be shut off, and must not run while\n"+
			"there are clones. The default for TARGET is SOURCE-clone, SOURCE-clone-1, ...\n"+
			"--start define:     define the clone\n"+
			"--start print:      print the XML of the clone, and create nothing\n"+
			"--start ephemeral:  start the clone; it is removed when it stops\n"+
			"--start persistent: define and start the clone\n"+
			"Prints the name of the clone. Jobs do not need this command.",
			"clone debian web --start persistent"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "start", Usage: "`MODE`: define, print, ephemeral or persistent", Value: string(define.CloneDefine), Destination: &f.start},
			&cli.StringFlag{Name: "mac", Usage: "`MAC` address of the only network card (default: random)", Destination: &f.mac},
			&cli.StringFlag{Name: "outdir", Usage: "directory `DIR` for the overlays (default: the setting overlay_dir)", Destination: &f.outdir},
			&cli.StringFlag{Name: "omit-backingstore", Usage: "omit <backingStore> and let libvirt probe the chain: auto (libvirt before 9.1.0), yes or no (`WHEN`; default: the setting omit_backingstore)", Destination: &f.omit},
			&cli.StringFlag{Name: "connect", Usage: "connect to libvirt at `URI` (default: the setting connect)", Destination: &f.connect},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not list the differences from the source", Destination: &f.quiet},
		},
		Action: command.WithArguments(1, 2, func(c *cli.Context, args []string) error {
			return clone(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func clone(ctx context.Context, cfg *command.Settings, f *cloneFlags, args []string, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	o := define.CloneOptions{Source: args[0], Start: define.StartMode(f.start), MAC: f.mac, Dir: f.outdir, OmitBackingStore: f.omit}
	if len(args) > 1 {
		o.Target = args[1]
	}
	clone, err := admin.Clone(ctx, settings, f.connect, o)
	if err != nil {
		return err
	}
	if !f.quiet {
		for _, note := range clone.Notes {
			fmt.Fprintf(stderr, "%s: %s\n", clone.Name, note)
		}
	}
	if o.Start == define.ClonePrint {
		_, err = fmt.Fprintln(stdout, clone.XML)
	} else {
		_, err = fmt.Fprintln(stdout, clone.Name)
	}
	return err
}
