package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci/store"
)

const imageCategory = "Images"

// imageArgument describes the argument IMAGE.
const imageArgument = "IMAGE is what a job would name (REGISTRY/NAME:TAG), or oci:PATH[:TAG], an OCI layout, or on this host: file:/PATH, a disk, or libvirt:NAME, a virtual machine that is shut off.\n"

// openStore opens the store of unpacked images.
func openStore(settings *config.Settings) (*store.Store, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	return store.Open(dirs.Store)
}

func imagesCommand(cfg *command.Settings, stdout, stderr io.Writer) *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name:        "images",
		Category:    imageCategory,
		Usage:       "list the images that are ready for jobs",
		Description: command.Describe("", "images", "images --json"),
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print JSON", Destination: &asJSON},
		},
		Action: command.WithArguments(0, 0, func(c *cli.Context, _ []string) error {
			return images(c.Context, cfg, asJSON, stdout, stderr)
		}),
	}
}

// imageLine is an image as images --json prints it.
type imageLine struct {
	Digest     digest.Digest `json:"digest"`
	References []string      `json:"references"`
	Complete   bool          `json:"complete"`
	Format     string        `json:"format,omitempty"`
	Size       int64         `json:"size"`
	LastUsed   time.Time     `json:"lastUsed"`
	// InUse are the domains on top of the image; null if libvirt did not answer.
	InUse []string `json:"inUse"`
}

func newImageLine(image store.StoredImage) imageLine {
	line := imageLine{
		Digest: image.Digest, References: append([]string{}, image.References...), Complete: image.Image != nil,
		Size: image.Usage, LastUsed: image.LastUsed,
	}
	if image.Image != nil {
		line.Format = image.Image.Format
	}
	return line
}

func images(ctx context.Context, cfg *command.Settings, asJSON bool, stdout, stderr io.Writer) error {
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	list, err := admin.ListImages(ctx, settings)
	if err != nil {
		if list == nil {
			return err
		}
		fmt.Fprintf(stderr, "WARNING: cannot find out which domains use the images: %v\n", err)
	}
	lines := make([]imageLine, len(list))
	for i, image := range list {
		lines[i] = newImageLine(image.StoredImage)
		if err == nil {
			lines[i].InUse = append([]string{}, image.Domains...)
		}
	}
	if asJSON {
		return printJSON(stdout, lines)
	}
	return printImages(stdout, lines)
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// shortDigest is the length of a digest in the table.
const shortDigest = len("sha256:") + 12

func printImages(w io.Writer, lines []imageLine) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tDIGEST\tSIZE\tLAST USED\tIN USE BY")
	for _, line := range lines {
		names := line.References
		switch {
		case !line.Complete:
			names = []string{"(not complete)"}
		case len(names) == 0:
			names = []string{"(no name)"}
		}
		for i, name := range names {
			if i > 0 {
				fmt.Fprintf(table, "%s\t\t\t\t\n", name)
				continue
			}
			fmt.Fprintf(table, "%s\t%.*s\t%s\t%s\t%s\n", name, shortDigest, line.Digest, units.BytesSize(float64(line.Size)),
				line.LastUsed.Local().Format(time.DateTime), inUse(line.InUse))
		}
	}
	return table.Flush()
}

func inUse(domains []string) string {
	switch {
	case domains == nil:
		return "?"
	case len(domains) == 0:
		return "-"
	}
	return strings.Join(domains, ", ")
}

// pruneFlags are the flags of prune.
type pruneFlags struct {
	olderThan   string
	keepStorage string
	dryRun      bool
}

func pruneCommand(cfg *command.Settings, stdout io.Writer) *cli.Command {
	f := &pruneFlags{}
	return &cli.Command{
		Name:     "prune",
		Category: imageCategory,
		Usage:    "remove images and caches that no machine uses",
		Description: command.Describe("prune needs --older-than or --keep-storage. With both, it removes an image only if both allow it. Least\n"+
			"recently used images are removed first. Only --older-than removes caches of projects.",
			"prune --older-than 30d --dry-run", "prune --keep-storage 50GiB"),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "older-than", Usage: "remove what no job has used for `TIME`, such as 12h or 30d", Destination: &f.olderThan},
			&cli.StringFlag{Name: "keep-storage", Usage: "stop when the images take `SIZE` or less, such as 50GiB", Destination: &f.keepStorage},
			&cli.BoolFlag{Name: "dry-run", Usage: "only list what would be removed", Destination: &f.dryRun},
		},
		Action: command.WithArguments(0, 0, func(c *cli.Context, _ []string) error {
			return prune(c.Context, cfg, f, stdout)
		}),
	}
}

func prune(ctx context.Context, cfg *command.Settings, f *pruneFlags, stdout io.Writer) error {
	o := admin.PruneOptions{KeepStorage: store.KeepNothing, DryRun: f.dryRun, Now: time.Now()}
	if f.olderThan == "" && f.keepStorage == "" {
		return errors.New("prune needs --older-than TIME or --keep-storage SIZE (--older-than 0s removes everything that is not in use)")
	}
	var err error
	if f.olderThan != "" {
		if o.OlderThan, err = parseAge(f.olderThan); err != nil {
			return fmt.Errorf("--older-than: %w", err)
		}
	}
	if f.keepStorage != "" {
		if o.KeepStorage, err = units.RAMInBytes(f.keepStorage); err != nil {
			return fmt.Errorf("--keep-storage: %w", err)
		}
	}
	settings, err := cfg.Load()
	if err != nil {
		return err
	}
	removed, err := admin.PruneImages(ctx, settings, o)
	var freed int64
	for _, image := range removed {
		freed += image.Usage
		name := "(no name)"
		if len(image.References) > 0 {
			name = strings.Join(image.References, ", ")
		}
		fmt.Fprintf(stdout, "%s  %s  %s\n", image.Digest, units.BytesSize(float64(image.Usage)), name)
	}
	what := "Removed"
	if f.dryRun {
		what = "Would remove"
	}
	fmt.Fprintf(stdout, "%s %d images, %s\n", what, len(removed), units.BytesSize(float64(freed)))
	if f.olderThan == "" {
		return err
	}
	return errors.Join(err, pruneCaches(ctx, settings, o, what, stdout))
}

func pruneCaches(ctx context.Context, settings *config.Settings, o admin.PruneOptions, what string, stdout io.Writer) error {
	removed, err := admin.PruneCaches(ctx, settings, o)
	var freed int64
	for _, cache := range removed {
		freed += cache.Size
		fmt.Fprintf(stdout, "%s  %s  %s\n", cache.Name, units.BytesSize(float64(cache.Size)), cache.Owner)
	}
	if len(removed) > 0 {
		fmt.Fprintf(stdout, "%s %d caches, %s\n", what, len(removed), units.BytesSize(float64(freed)))
	}
	return err
}

// parseAge parses a time in Go's notation, or a number of days: "30d".
func parseAge(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint16
		if _, err := fmt.Sscanf(days, "%d", &n); err != nil || fmt.Sprint(n) != days {
			return 0, fmt.Errorf("%q: want a number of days before the d", text)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	age, err := time.ParseDuration(text)
	if err == nil && age < 0 {
		err = fmt.Errorf("%q is negative", text)
	}
	return age, err
}
