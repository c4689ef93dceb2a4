package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/oci"
)

const imageCategory = "Images"

// exportFlags are what export is told beside the image's name.
type exportFlags struct {
	disks    cli.StringSlice
	vmConfig string
}

func exportCommand(stdout io.Writer) *cli.Command {
	f := &exportFlags{}
	return &cli.Command{
		Name:      "export",
		Category:  imageCategory,
		Usage:     "pack disks as an image, in an OCI layout",
		ArgsUsage: "oci:PATH[:TAG]",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "disk", Usage: "pack the disk `FILE`, qcow2 or raw; its backing files come along (repeatable)", Destination: &f.disks},
			&cli.StringFlag{Name: "vm-config", Usage: "put the JSON `FILE` into the image: who logs in to the guest ({\"users\": [{\"username\": …, \"password\": …}]})", Destination: &f.vmConfig},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return errors.New("export needs one layout to write to: oci:PATH[:TAG]")
			}
			return export(c.Context, f, c.Args().First(), stdout)
		},
	}
}

func export(ctx context.Context, f *exportFlags, target string, stdout io.Writer) error {
	to, err := oci.ParseReference(target)
	if err != nil {
		return err
	}
	o := oci.ExportOptions{}
	for _, path := range f.disks.Value() {
		o.Disks = append(o.Disks, oci.ExportDisk{Path: path})
	}
	if f.vmConfig != "" {
		text, err := os.ReadFile(f.vmConfig)
		if err != nil {
			return fmt.Errorf("read the VM config: %w", err)
		}
		if o.Guest, err = oci.ParseGuestConfig(text); err != nil {
			return fmt.Errorf("read the VM config %s: %w", f.vmConfig, err)
		}
	}
	digest, err := oci.Export(ctx, to, o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, digest)
	return err
}

// openStore opens the store of unpacked images.
func openStore(settings *executor.Settings) (*oci.Store, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	return oci.OpenStore(dirs.Store)
}
