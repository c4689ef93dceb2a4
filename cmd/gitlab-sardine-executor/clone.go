package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/vm"
)

// cloneFlags are what clone is told beside the names.
type cloneFlags struct {
	start   string
	mac     string
	outdir  string
	omit    string
	connect string
	quiet   bool
}

func cloneCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &cloneFlags{}
	return &cli.Command{
		Name:      "clone",
		Category:  imageCategory,
		Usage:     "clone a defined virtual machine copy-on-write",
		ArgsUsage: "SOURCE [TARGET]",
		Description: "The clone's disks are overlays on those of SOURCE, which must be shut off and must not run again\n" +
			"as long as there are clones. Without TARGET the clone is called SOURCE-clone, SOURCE-clone-1, ...\n" +
			"--start define:     define the clone\n" +
			"--start print:      print the XML of the clone, and make nothing\n" +
			"--start ephemeral:  start it; nothing of it is left when it stops\n" +
			"--start persistent: define and start it\n" +
			"Prints the name of the clone. Jobs need no clone: they make theirs.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "start", Usage: "what becomes of the clone: define, print, ephemeral or persistent (`MODE`)", Value: string(vm.CloneDefine), Destination: &f.start},
			&cli.StringFlag{Name: "mac", Usage: "give the only network card the address `MAC` (default: random ones)", Destination: &f.mac},
			&cli.StringFlag{Name: "outdir", Usage: "put the overlays into `DIR` (default: the setting overlay_dir)", Destination: &f.outdir},
			&cli.StringFlag{Name: "omit-backingstore", Usage: "leave it to libvirt to find the disks below the overlays: auto (libvirt before 9.1.0), yes or no (`WHEN`; default: the setting omit_backingstore)", Destination: &f.omit},
			&cli.StringFlag{Name: "connect", Usage: "connect to libvirt at `URI` (default: the setting connect)", Destination: &f.connect},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not say what the clone has otherwise than its source", Destination: &f.quiet},
		},
		Action: withArguments(1, 2, func(c *cli.Context, args []string) error {
			return clone(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func clone(ctx context.Context, cfg *settingsFlags, f *cloneFlags, args []string, stdout, stderr io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	o := vm.CloneOptions{Source: args[0], Start: vm.StartMode(f.start), MAC: f.mac, Dir: f.outdir, OmitBackingStore: f.omit}
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
	if o.Start == vm.ClonePrint {
		_, err = fmt.Fprintln(stdout, clone.XML)
	} else {
		_, err = fmt.Fprintln(stdout, clone.Name)
	}
	return err
}
