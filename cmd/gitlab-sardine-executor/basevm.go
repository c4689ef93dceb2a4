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

	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/oci"
)

// importFlags say what import defines.
type importFlags struct {
	registryFlags
	progressFlags
	name   string
	dir    string
	policy string
}

func importCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &importFlags{}
	return &cli.Command{
		Name:      "import",
		Category:  imageCategory,
		Usage:     "define a virtual machine made of an image in libvirt",
		ArgsUsage: "IMAGE",
		Description: "IMAGE is what a job would name, or oci:PATH[:TAG], an OCI layout on this machine.\n" +
			"The machine is a base to clone, or to start, change and export. Its disks are overlays: the image stays what it is.\n" +
			"Prints the machine's name.",
		Flags: append(append(f.registryFlags.flags(), f.progressFlags.flags()...),
			&cli.StringFlag{Name: "name", Usage: "call the machine `NAME` (default: the image's digest)", Destination: &f.name},
			&cli.StringFlag{Name: "dir", Usage: "make the directory `DIR` for its disks (default: one of that name in the storage)", Destination: &f.dir},
			&cli.StringFlag{Name: "policy", Usage: "when to ask the registry: always, if-not-present or never (`POLICY`)", Value: string(oci.PullAlways), Destination: &f.policy},
		),
		Before: logWarnings(stderr),
		Action: withArguments(1, 1, func(c *cli.Context, args []string) error {
			return importImage(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func importImage(ctx context.Context, cfg *settingsFlags, f *importFlags, image string, stdout, stderr io.Writer) error {
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	dir := f.dir
	if dir != "" {
		if dir, err = filepath.Abs(dir); err != nil {
			return err
		}
	}
	progress := f.progress(stderr, "Pulling")
	imported, err := admin.Import(ctx, admin.ImportOptions{
		Settings: settings, Image: image, Name: f.name, Dir: dir,
		Pull: oci.PullOptions{
			Policies:    []oci.PullPolicy{oci.PullPolicy(f.policy)},
			Credentials: f.credentials(),
			MaxDisk:     settings.For(image).MaxDisk,
			Progress:    progress,
		},
	})
	progress.Close()
	if err != nil {
		return err
	}
	for _, path := range imported.Dropped {
		fmt.Fprintf(stderr, "dropped from the image's domain: %s\n", visible(path))
	}
	_, err = fmt.Fprintln(stdout, imported.Name)
	return err
}

// exportFlags say what export packs, and how.
type exportFlags struct {
	progressFlags
	disks     cli.StringSlice
	vmConfig  string
	format    string
	chunkSize string
}

func exportCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &exportFlags{}
	return &cli.Command{
		Name:      "export",
		Category:  imageCategory,
		Usage:     "pack a virtual machine, or disks, as an image in an OCI layout",
		ArgsUsage: "VM oci:PATH[:TAG] | --disk FILE... oci:PATH[:TAG]",
		Description: "VM is one of libvirt's, shut down. Backing files come along, base first; what belongs to one host or one\n" +
			"machine is taken out of its XML. Prints the digest of the image, which push copies to a registry.",
		Flags: append(f.flags(),
			&cli.StringSliceFlag{Name: "disk", Usage: "pack the disk `FILE`, qcow2 or raw, in place of a VM (repeatable)", Destination: &f.disks},
			&cli.StringFlag{Name: "vm-config", Usage: "put the JSON `FILE` into the image: who logs in to the guest ({\"users\": [{\"username\": …, \"password\": …}]})", Destination: &f.vmConfig},
			&cli.StringFlag{Name: "format", Usage: "sardinecake, which its Python tool reads, or chunked, of which a new version transfers only what changed (`FORMAT`)", Value: "sardinecake", Destination: &f.format},
			&cli.StringFlag{Name: "chunk-size", Usage: "cut the disks into layers of `SIZE`, such as 64MiB (default: whole disks; with chunked, by the size of the disk)", Destination: &f.chunkSize},
		),
		Action: withArguments(1, 2, func(c *cli.Context, args []string) error {
			if (len(f.disks.Value()) > 0) == (len(args) == 2) {
				return fmt.Errorf("export needs a VM or --disk FILE, and a layout (usage: %s)", usageOf(c))
			}
			return export(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

// export packs the VM and the layout in args, or the flags' disks and the layout
// alone.
func export(ctx context.Context, cfg *settingsFlags, f *exportFlags, args []string, stdout, stderr io.Writer) error {
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
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	progress := f.progress(stderr, "Exporting")
	o.Progress = progress
	var d digest.Digest
	if len(args) == 2 {
		d, err = admin.ExportVM(ctx, settings, args[0], to, o)
	} else {
		d, err = oci.Export(ctx, to, o)
	}
	progress.Close()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, d)
	return err
}

// options are those of the flags.
func (f *exportFlags) options() (oci.ExportOptions, error) {
	o := oci.ExportOptions{Format: f.format}
	for _, path := range f.disks.Value() {
		o.Disks = append(o.Disks, oci.ExportDisk{Path: path, CDROM: strings.EqualFold(filepath.Ext(path), ".iso")})
	}
	if f.chunkSize != "" {
		size, err := units.RAMInBytes(f.chunkSize)
		if err == nil && size <= 0 {
			err = errors.New("want more than nothing")
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
