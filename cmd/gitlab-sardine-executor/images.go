package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

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

func pushCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "push",
		Category:  imageCategory,
		Usage:     "copy an image from an OCI layout to a registry",
		ArgsUsage: "oci:PATH[:TAG] REGISTRY/NAME[:TAG]",
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return errors.New("push needs a layout and a registry: push oci:PATH[:TAG] REGISTRY/NAME[:TAG]")
			}
			return transfer(c.Context, oci.Push, c.Args().Get(0), c.Args().Get(1), stdout)
		},
	}
}

type transferFunc func(context.Context, oci.Reference, oci.Reference, oci.TransferOptions) (digest.Digest, error)

func transfer(ctx context.Context, copyImage transferFunc, source, target string, stdout io.Writer) error {
	from, err := oci.ParseReference(source)
	if err != nil {
		return err
	}
	to, err := oci.ParseReference(target)
	if err != nil {
		return err
	}
	digest, err := copyImage(ctx, from, to, oci.TransferOptions{})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, digest)
	return err
}
