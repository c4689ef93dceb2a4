package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/source"
)

type inspectFlags struct {
	command.RegistryFlags
	asJSON bool
	domain bool
	arch   string
}

func inspectCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &inspectFlags{}
	return &cli.Command{
		Name:      "inspect",
		Category:  imageCategory,
		Usage:     "describe an image, and what a job would do with it",
		ArgsUsage: "IMAGE",
		Description: command.Describe(imageArgument+"inspect pulls nothing; --domain needs an image that was pulled.",
			"inspect registry.example.com/vms/debian:12"),
		Flags: append(f.Flags(),
			&cli.BoolFlag{Name: "json", Usage: "print JSON, including the passwords in the image's VM config", Destination: &f.asJSON},
			&cli.BoolFlag{Name: "domain", Usage: "print the libvirt domain XML that a job would boot", Destination: &f.domain},
			&cli.StringFlag{Name: "arch", Usage: "select the image for `ARCH` from an index (default: this host's)", Destination: &f.arch},
		),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			return inspect(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func inspect(ctx context.Context, cfg *command.Settings, f *inspectFlags, image string, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	if f.domain {
		doc, dropped, err := admin.PreviewDomain(settings, image)
		if err != nil {
			return err
		}
		for _, path := range dropped {
			fmt.Fprintf(stderr, "dropped from the image's domain: %s\n", command.EscapeControl(path))
		}
		_, err = fmt.Fprintln(stdout, doc)
		return err
	}
	report, err := admin.InspectImage(ctx, settings, image, source.InspectOptions{
		Options:      source.Options{Credentials: f.Credentials(), StallTimeout: time.Duration(settings.Defaults.PullStallTimeout)},
		Architecture: f.arch,
	})
	if err != nil {
		return err
	}
	if f.asJSON {
		return printJSON(stdout, report)
	}
	return printReport(stdout, report)
}

// printReport prints a report for people.
func printReport(w io.Writer, r *admin.ImageReport) error {
	p := &printer{w: w}
	p.line("Image:", r.Reference)
	p.line("Digest:", r.Digest.String())
	if r.Index != "" {
		p.line("Index:", r.Index.String())
	}
	p.line("Format:", r.Format)
	for _, fact := range r.Evidence {
		p.line("", "because of "+fact)
	}
	if r.Architecture != "" {
		p.line("Platform:", strings.Trim(r.OS+"/"+r.Architecture, "/"))
	}
	if !r.Created.IsZero() {
		p.line("Created:", r.Created.Local().Format(time.DateTime))
	}
	p.line("Size:", units.BytesSize(float64(r.Size))+" to transfer")
	for _, disk := range r.Disks {
		p.line("Disk:", describeDisk(disk))
	}
	p.line("Firmware:", r.Firmware)
	for _, user := range r.Guest.Users {
		p.line("User:", user.Username)
	}
	if len(r.Guest.Users) == 0 {
		p.line("User:", "none in the image")
	}
	p.line("Guest:", strings.Join(r.Unknown, ", ")+": unknown until booted")
	for _, service := range r.Guest.Services {
		p.line("Service:", fmt.Sprintf("%s at port %d", service.Service, service.Port))
	}
	if r.Stored == nil {
		p.line("Store:", "not in the store")
	} else {
		p.line("Store:", r.Stored.Dir)
		p.line("", "last used "+r.Stored.LastUsed.Local().Format(time.DateTime))
		for _, disk := range r.Stored.Disks {
			p.line("", describeStoredDisk(disk))
		}
	}
	for i, sentence := range r.Prepare {
		p.line(map[bool]string{true: "A job would:"}[i == 0], sentence)
	}
	return p.err
}

// A printer writes lines with a column of labels, and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(label, text string) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%-13s %s\n", label, command.EscapeControl(text))
	}
}

func describeDisk(d oci.InspectedDisk) string {
	name, content := d.Name, d.Content
	if name == "" {
		name = "(named by its content)"
	}
	if content == "" {
		content = "qcow2 or raw"
	}
	layers := fmt.Sprintf("%d layers", d.Layers)
	if d.Layers == 1 {
		layers = "1 layer"
	}
	text := fmt.Sprintf("%s, %s, %s in %s", name, content, units.BytesSize(float64(d.Compressed)), layers)
	if d.Size > 0 {
		text += ", " + units.BytesSize(float64(d.Size)) + " unpacked"
	}
	return text
}

func describeStoredDisk(d oci.Disk) string {
	text := fmt.Sprintf("%s, %s, %s", d.Name, d.Format, units.BytesSize(float64(d.VirtualSize)))
	if d.CDROM {
		text += ", CD-ROM"
	}
	if d.Backing != "" {
		text += ", on " + d.Backing
	}
	return text
}
