package main

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/oci"
)

// transferFlags are those of fetch and push.
type transferFlags struct {
	registryFlags
	progressFlags
	// other is the name in the registry, if it is another than here.
	other string
}

func fetchCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &transferFlags{}
	return &cli.Command{
		Name:      "fetch",
		Category:  registryCategory,
		Usage:     "copy an image from a registry to an OCI layout",
		ArgsUsage: "IMAGE [oci:PATH[:TAG]]",
		Description: "Without a layout, the image goes to its own in the directory layout_dir, under its tag.\n" +
			"Prints the digest. Jobs need no fetch: they pull.",
		Flags: append(append(f.registryFlags.flags(), f.progressFlags.flags()...),
			&cli.StringFlag{Name: "source", Usage: "fetch `NAME` in place of IMAGE, which then only says where it goes", Destination: &f.other}),
		Before: logWarnings(stderr),
		Action: withArguments(1, 2, func(c *cli.Context, args []string) error {
			return fetch(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func fetch(ctx context.Context, cfg *settingsFlags, f *transferFlags, args []string, stdout, stderr io.Writer) error {
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
	return f.run(ctx, oci.Fetch, "Fetching", refs[0], refs[1], stdout, stderr)
}

func pushCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &transferFlags{}
	return &cli.Command{
		Name:      "push",
		Category:  registryCategory,
		Usage:     "copy an image from an OCI layout to a registry",
		ArgsUsage: "[oci:PATH[:TAG]] IMAGE",
		Description: "Without a layout, the image comes from its own in the directory layout_dir.\n" +
			"Prints the digest.",
		Flags: append(append(f.registryFlags.flags(), f.progressFlags.flags()...),
			&cli.StringFlag{Name: "target", Usage: "push to `NAME` in place of IMAGE, which then only says where it comes from", Destination: &f.other}),
		Before: logWarnings(stderr),
		Action: withArguments(1, 2, func(c *cli.Context, args []string) error {
			return push(c.Context, cfg, f, args, stdout, stderr)
		}),
	}
}

func push(ctx context.Context, cfg *settingsFlags, f *transferFlags, args []string, stdout, stderr io.Writer) error {
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
	return f.run(ctx, oci.Push, "Pushing", refs[0], refs[1], stdout, stderr)
}

// run copies an image and prints its digest.
func (f *transferFlags) run(ctx context.Context, copyImage transferFunc, what string, from, to oci.Reference, stdout, stderr io.Writer) error {
	progress := f.progress(stderr, what)
	d, err := copyImage(ctx, from, to, oci.TransferOptions{Credentials: f.credentials(), Progress: progress})
	progress.Close()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, d)
	return err
}

type transferFunc func(context.Context, oci.Reference, oci.Reference, oci.TransferOptions) (digest.Digest, error)

// defaultLayout is the layout of an image in the directory layout_dir.
func defaultLayout(cfg *settingsFlags, image oci.Reference) (oci.Reference, error) {
	settings, err := cfg.load()
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

// pullFlags are those of pull.
type pullFlags struct {
	registryFlags
	progressFlags
	policy string
	arch   string
}

func pullCommand(cfg *settingsFlags, stdout, stderr io.Writer) *cli.Command {
	f := &pullFlags{}
	return &cli.Command{
		Name:      "pull",
		Category:  registryCategory,
		Usage:     "get an image ready for jobs: unpacked, verified and in the store",
		ArgsUsage: "IMAGE",
		Description: "IMAGE is what a job would name, or oci:PATH[:TAG], an OCI layout on this machine.\n" +
			"Prints the digest. The first job to need an image pulls it, too.",
		Flags: append(append(f.registryFlags.flags(), f.progressFlags.flags()...),
			&cli.StringFlag{Name: "policy", Usage: "when to ask the registry: always, if-not-present or never (`POLICY`)", Value: string(oci.PullAlways), Destination: &f.policy},
			&cli.StringFlag{Name: "arch", Usage: "choose from an index what is for `ARCH`, such as arm64 (default: this machine's)", Destination: &f.arch},
		),
		Before: logWarnings(stderr),
		Action: withArguments(1, 1, func(c *cli.Context, args []string) error {
			return pull(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func pull(ctx context.Context, cfg *settingsFlags, f *pullFlags, text string, stdout, stderr io.Writer) error {
	ref, err := oci.ParseReference(text)
	if err != nil {
		return err
	}
	settings, err := cfg.load()
	if err != nil {
		return err
	}
	store, err := openStore(settings)
	if err != nil {
		return err
	}
	progress := f.progress(stderr, "Pulling")
	image, err := store.Pull(ctx, ref, oci.PullOptions{
		Policies:     []oci.PullPolicy{oci.PullPolicy(f.policy)},
		Credentials:  f.credentials(),
		Architecture: f.arch,
		MaxDisk:      settings.For(text).MaxDisk,
		Progress:     progress,
	})
	progress.Close()
	if err != nil {
		return err
	}
	defer image.Close()
	_, err = fmt.Fprintln(stdout, image.Digest)
	return err
}
