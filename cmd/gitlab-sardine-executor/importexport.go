package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/store"
)

// importFlags are the flags of import.
type importFlags struct {
	command.RegistryFlags
	command.ProgressFlags
	name   string
	dir    string
	policy string
}

func importCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &importFlags{}
	return &cli.Command{
		Name:      "import",
		Category:  imageCategory,
		Usage:     "define a virtual machine in libvirt from an image",
		ArgsUsage: "IMAGE",
		Description: command.Describe(imageArgument+"Clone the machine, or start it, change it and export it. Its disks are overlays: the image does not change.\n"+
			"Prints the name of the machine.",
			"import registry.example.com/vms/debian:12 --name debian"),
		Flags: append(append(f.RegistryFlags.Flags(), f.ProgressFlags.Flags()...),
			&cli.StringFlag{Name: "name", Usage: "name the machine `NAME` (default: the digest of the image)", Destination: &f.name},
			&cli.StringFlag{Name: "dir", Usage: "create the directory `DIR` for its disks (default: a directory of that name below image_dir)", Destination: &f.dir},
			&cli.StringFlag{Name: "policy", Usage: "when to ask the registry: always, if-not-present or never (`POLICY`)", Value: string(oci.PullAlways), Destination: &f.policy},
		),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			return importImage(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func importImage(ctx context.Context, cfg *command.Settings, f *importFlags, image string, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	dir := f.dir
	if dir != "" {
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	progress := f.Progress(stderr, "Pulling")
	imported, err := admin.Import(ctx, admin.ImportOptions{
		Settings: settings, Image: image, Name: f.name, Dir: dir,
		Pull: store.PullOptions{
			Policies:    []oci.PullPolicy{oci.PullPolicy(f.policy)},
			Credentials: f.Credentials(),
			Progress:    progress,
		},
	})
	progress.Close()
	if err != nil {
		return err
	}
	for _, path := range imported.Dropped {
		fmt.Fprintf(stderr, "dropped from the image's domain: %s\n", command.EscapeControl(path))
	}
	_, err = fmt.Fprintln(stdout, imported.Name)
	return err
}

// exportFlags are the flags of export.
type exportFlags struct {
	command.ProgressFlags
	disks     cli.StringSlice
	vmConfig  string
	format    string
	chunkSize string
}

func exportCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &exportFlags{}
	return &cli.Command{
		Name:      "export",
		Category:  imageCategory,
		Usage:     "pack a virtual machine, or disks, into an image in an OCI layout",
		ArgsUsage: "VM oci:PATH[:TAG] | --disk FILE... oci:PATH[:TAG]",
		Description: command.Describe("VM is a libvirt domain that is shut off. The image gets its disks with their backing files, and its domain XML\n"+
			"without what belongs to one host or one machine. Prints the digest. push copies the image to a registry.",
			"export debian oci:debian:12", "export --disk disk.qcow2 oci:debian:12"),
		Flags: append(f.Flags(),
			&cli.StringSliceFlag{Name: "disk", Usage: "pack the disk `FILE`, qcow2 or raw, instead of a VM (repeatable)", Destination: &f.disks},
			&cli.StringFlag{Name: "vm-config", Usage: "add the JSON `FILE` to the image, with the guest's user ({\"users\": [{\"username\": …, \"password\": …}]})", Destination: &f.vmConfig},
			&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the image: sardinecake, for the Python tool, or chunked, where a new version transfers only the chunks that changed", Value: "sardinecake", Destination: &f.format},
			&cli.StringFlag{Name: "chunk-size", Usage: "split the disks into layers of `SIZE`, such as 64MiB (default: one layer for a disk; chunked: depends on the size of the disk)", Destination: &f.chunkSize},
		),
		Action: command.WithArguments(1, 2, func(c *cli.Context, args []string) error {
			if (len(f.disks.Value()) > 0) == (len(args) == 2) {
				return fmt.Errorf("export needs a VM or --disk FILE, and a layout (usage: %s)", command.UsageOf(c))
			}
			return runExport(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

// export packs a VM, if args has one before the layout, or the disks of the flags.
func runExport(ctx context.Context, cfg *command.Settings, f *exportFlags, args []string, stdout, stderr io.Writer) error {
	to, err := oci.ParseReference(args[len(args)-1])
	if err != nil {
		return err
	}
	if !to.IsLayout() {
		return fmt.Errorf("export writes to a layout, oci:PATH[:TAG], not to %s; push copies it to a registry", to)
	}
	o, err := f.options()
	if err != nil {
		return err
	}
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	progress := f.Progress(stderr, "Exporting")
	o.Progress = progress
	var d digest.Digest
	if len(args) == 2 {
		d, err = admin.ExportVM(ctx, settings, args[0], to, o)
	} else {
		d, err = export.Export(ctx, to, o)
	}
	progress.Close()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, d)
	return err
}

// options converts the flags.
func (f *exportFlags) options() (export.Options, error) {
	o := export.Options{Format: f.format}
	for _, path := range f.disks.Value() {
		o.Disks = append(o.Disks, export.Disk{Path: path, CDROM: strings.EqualFold(filepath.Ext(path), ".iso")})
	}
	if f.chunkSize != "" {
		size, err := units.RAMInBytes(f.chunkSize)
		if err == nil && size <= 0 {
			err = errors.New("want a size greater than 0")
		}
		if err != nil {
			return o, fmt.Errorf("--chunk-size %s: %w", f.chunkSize, err)
		}
		o.ChunkSize = size
	}
	if f.vmConfig == "" {
		return o, nil
	}
	text, err := os.ReadFile(f.vmConfig)
	if err != nil {
		return o, fmt.Errorf("read the VM config: %w", err)
	}
	if o.Guest, err = oci.ParseGuestConfig(text); err != nil {
		return o, fmt.Errorf("read the VM config %s: %w", f.vmConfig, err)
	}
	return o, nil
}
