package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/oci/transfer"
)

// transferFlags are the flags of fetch and push.
type transferFlags struct {
	command.RegistryFlags
	command.ProgressFlags
	// other is the name in the registry, if it differs from the local one.
	other string
}

func fetchCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &transferFlags{}
	return &cli.Command{
		Name:      "fetch",
		Category:  registryCategory,
		Usage:     "copy an image from a registry to an OCI layout",
		ArgsUsage: "IMAGE [oci:PATH[:TAG]]",
		Description: command.Describe("The default layout is a directory below layout_dir, named after the repository. Prints the digest.\n"+
			"Jobs do not need this command: they pull.",
			"fetch registry.example.com/vms/debian:12 oci:debian:12"),
		Flags: append(append(f.RegistryFlags.Flags(), f.ProgressFlags.Flags()...),
			&cli.StringFlag{Name: "source", Usage: "fetch `NAME`; IMAGE then only names the layout", Destination: &f.other}),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 2, func(c *cli.Context, args []string) error {
			return fetch(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func fetch(ctx context.Context, cfg *command.Settings, f *transferFlags, args []string, stdout, stderr io.Writer) error {
	refs, err := parseReferences(args)
	if err != nil {
		return err
	}
	if len(refs) == 1 {
		layout, err := defaultLayout(cfg, refs[0])
		if err != nil {
			return err
		}
		refs = append(refs, layout)
	}
	if f.other != "" {
		if refs[0], err = oci.ParseReference(f.other); err != nil {
			return err
		}
	}
	return f.run(ctx, cfg, transfer.Fetch, "Fetching", refs[0], refs[1], stdout, stderr)
}

func pushCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &transferFlags{}
	return &cli.Command{
		Name:      "push",
		Category:  registryCategory,
		Usage:     "copy an image from an OCI layout to a registry",
		ArgsUsage: "[oci:PATH[:TAG]] IMAGE",
		Description: command.Describe("The default layout is a directory below layout_dir, named after the repository. Prints the digest.",
			"push oci:debian:12 registry.example.com/vms/debian:12"),
		Flags: append(append(f.RegistryFlags.Flags(), f.ProgressFlags.Flags()...),
			&cli.StringFlag{Name: "target", Usage: "push to `NAME`; IMAGE then only names the layout", Destination: &f.other}),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 2, func(c *cli.Context, args []string) error {
			return push(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func push(ctx context.Context, cfg *command.Settings, f *transferFlags, args []string, stdout, stderr io.Writer) error {
	refs, err := parseReferences(args)
	if err != nil {
		return err
	}
	if len(refs) == 1 {
		layout, err := defaultLayout(cfg, refs[0])
		if err != nil {
			return err
		}
		refs = []oci.Reference{layout, refs[0]}
	}
	if f.other != "" {
		if refs[1], err = oci.ParseReference(f.other); err != nil {
			return err
		}
	}
	return f.run(ctx, cfg, transfer.Push, "Pushing", refs[0], refs[1], stdout, stderr)
}

// run copies an image and prints its digest.
func (f *transferFlags) run(ctx context.Context, cfg *command.Settings, copyImage transferFunc, what string, from, to oci.Reference, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	progress := f.Progress(stderr, what)
	d, err := copyImage(ctx, from, to, transfer.Options{
		Credentials: f.Credentials(), Progress: progress, StallTimeout: time.Duration(settings.Defaults.PullStallTimeout),
	})
	progress.Close()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, d)
	return err
}

type transferFunc func(context.Context, oci.Reference, oci.Reference, transfer.Options) (digest.Digest, error)

// defaultLayout is the layout of an image below layout_dir.
func defaultLayout(cfg *command.Settings, image oci.Reference) (oci.Reference, error) {
	settings, err := cfg.Load()
	if err != nil {
		return oci.Reference{}, err
	}
	dirs, err := settings.Dirs()
	if err != nil {
		return oci.Reference{}, err
	}
	return image.LayoutIn(dirs.Layouts)
}

func parseReferences(texts []string) ([]oci.Reference, error) {
	refs := make([]oci.Reference, len(texts))
	for i, text := range texts {
		var err error
		if refs[i], err = oci.ParseReference(text); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// pullFlags are the flags of pull.
type pullFlags struct {
	command.RegistryFlags
	command.ProgressFlags
	policy string
	arch   string
}

func pullCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	f := &pullFlags{}
	return &cli.Command{
		Name:      "pull",
		Category:  registryCategory,
		Usage:     "pull, verify and unpack an image, so that jobs start faster",
		ArgsUsage: "IMAGE",
		Description: command.Describe(imageArgument+"Prints the digest. Without this command the first job that needs the image pulls it.",
			"pull registry.example.com/vms/debian:12"),
		Flags: append(append(f.RegistryFlags.Flags(), f.ProgressFlags.Flags()...),
			&cli.StringFlag{Name: "policy", Usage: "when to ask the registry: always, if-not-present or never (`POLICY`)", Value: string(oci.PullAlways), Destination: &f.policy},
			&cli.StringFlag{Name: "arch", Usage: "select the image for `ARCH`, such as arm64, from an index (default: this host's)", Destination: &f.arch},
		),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			return pull(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func pull(ctx context.Context, cfg *command.Settings, f *pullFlags, text string, stdout, stderr io.Writer) error {
	ref, err := oci.ParseReference(text)
	if err != nil {
		return err
	}
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	local, err := openStore(settings)
	if err != nil {
		return err
	}
	progress := f.Progress(stderr, "Pulling")
	// Without a host: an image may be pulled on another machine than it runs on.
	image, err := local.Pull(ctx, ref, executor.PullLimits(settings, settings.For(text), store.PullOptions{
		Policies:     []oci.PullPolicy{oci.PullPolicy(f.policy)},
		Credentials:  f.Credentials(),
		Architecture: f.arch,
		Progress:     progress,
	}))
	progress.Close()
	if err != nil {
		return err
	}
	defer image.Close()
	_, err = fmt.Fprintln(stdout, image.Digest)
	return err
}
