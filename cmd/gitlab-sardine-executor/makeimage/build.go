// Package makeimage has the command that makes an image from another one.
package makeimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"gitlab-sardine-executor/cmd/gitlab-sardine-executor/command"
	"gitlab-sardine-executor/executor/build"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// buildFlags are the flags of build.
type buildFlags struct {
	command.RegistryFlags
	command.ProgressFlags
	from, push, user, format string
	disk, memory             string
	cpus                     uint
	labels                   cli.StringSlice
	timeout                  time.Duration
	keep, verify             bool
	steps                    []build.Step
}

// A stepFlag appends to the steps: their order is that of the command line, whichever flags
// they are.
type stepFlag struct {
	steps *[]build.Step
	parse func(text string) (build.Step, error)
}

// Set appends one step. The cli package calls it for each flag, in their order.
func (f stepFlag) Set(text string) error {
	step, err := f.parse(text)
	if err == nil {
		*f.steps = append(*f.steps, step)
	}
	return err
}

// String is the default value in the help: none.
func (f stepFlag) String() string { return "" }

// Build returns the command build, for a category of commands.
func Build(cfg *command.Settings, category string, stdout, stderr io.Writer) *cli.Command {
	f := &buildFlags{}
	return &cli.Command{
		Name:      "build",
		Category:  category,
		Usage:     "make an image from another one: boot it, run scripts in it, and export it",
		ArgsUsage: "oci:PATH[:TAG]",
		Description: command.Describe("The steps, --run and --copy, run in the order of the command line, as root. Then the guest is sealed (machine ID,\n"+
			"SSH host keys, logs, caches and leases are removed) and powered off, its disks are exported, and two machines of\n"+
			"the new image are booted before it gets its tag. Prints the digest. docs/images.md has examples.",
			"build --from quay.io/containerdisks/debian:13 --run setup.sh oci:images/ci:1",
			"build --from oci:images/ci:1 --copy files:/opt/tools/ --run install.sh oci:images/ci:2 --push registry.example.com/vms/ci:2"),
		Flags:  f.flags(),
		Before: command.LogWarnings(stderr),
		Action: command.WithArguments(1, 1, func(c *cli.Context, args []string) error {
			return runBuild(c.Context, cfg, f, args[0], stdout, stderr)
		}),
	}
}

func (f *buildFlags) flags() []cli.Flag {
	run := stepFlag{&f.steps, func(text string) (build.Step, error) { return &build.Run{Path: text}, nil }}
	copyFiles := stepFlag{&f.steps, func(text string) (build.Step, error) { return build.ParseCopy(text) }}
	return append(append(f.RegistryFlags.Flags(), f.ProgressFlags.Flags()...),
		&cli.StringFlag{Name: "from", Usage: "start with `IMAGE`, which a job could name", Destination: &f.from},
		&cli.GenericFlag{Name: "run", Usage: "run the file `SCRIPT` of this host in the guest, as root (repeatable)", Value: run},
		&cli.GenericFlag{Name: "copy", Usage: "copy a file or the content of a directory of this host into the guest (`SRC:DST`, repeatable)", Value: copyFiles},
		&cli.StringFlag{Name: "disk", Usage: "enlarge the disk to `SIZE`, such as 40GiB", Destination: &f.disk},
		&cli.UintFlag{Name: "cpus", DefaultText: "as the settings say", Usage: "give the machine of the build `N` CPUs", Destination: &f.cpus},
		&cli.StringFlag{Name: "memory", Usage: "give the machine of the build memory of `SIZE`, such as 4GiB", Destination: &f.memory},
		&cli.StringSliceFlag{Name: "label", Usage: "set a label of the image (`KEY=VALUE`, repeatable)", Destination: &f.labels},
		&cli.StringFlag{Name: "user", Usage: "log in as `NAME`, in the build and in jobs with the image (default: the user of the base)", Destination: &f.user},
		&cli.StringFlag{Name: "format", Usage: "`FORMAT` of the image: chunked, where a new version transfers only the chunks that changed, or sardinecake, for the Python tool", Value: format.Chunked, Destination: &f.format},
		&cli.DurationFlag{Name: "timeout", Usage: "fail if a step takes longer than `DURATION`", Value: build.DefaultTimeout, Destination: &f.timeout},
		&cli.BoolFlag{Name: "keep", Usage: "keep the machine for a day if a step fails", Destination: &f.keep},
		&cli.BoolFlag{Name: "verify", Usage: "boot two machines of the image before it gets its tag; --verify=false does not", Value: true, Destination: &f.verify},
		&cli.StringFlag{Name: "push", Usage: "copy the image to the registry, as `IMAGE`", Destination: &f.push},
	)
}

func runBuild(ctx context.Context, cfg *command.Settings, f *buildFlags, to string, stdout, stderr io.Writer) error {
	o, err := f.options(to)
	if err != nil {
		return err
	}
	if o.Settings, err = cfg.Load(); err != nil {
		return err
	}
	o.Log = joblog.New(stderr)
	if os.Getenv("GITLAB_CI") == "true" {
		o.Log = joblog.NewGitLab(stderr) // its sections fold
	}
	o.Progress = func(what string) joblog.Progress { return f.Progress(stderr, what) }
	d, err := build.Build(ctx, o)
	if err != nil {
		return errors.New(joblog.OneLine(err.Error()))
	}
	_, err = fmt.Fprintln(stdout, d)
	return err
}

// options converts the flags.
func (f *buildFlags) options(to string) (o build.Options, err error) {
	if f.from == "" {
		return o, errors.New("build needs a base: --from IMAGE")
	}
	if f.format != format.Chunked && f.format != format.Sardinecake {
		return o, fmt.Errorf("--format %s: want %s or %s", f.format, format.Chunked, format.Sardinecake)
	}
	if f.timeout <= 0 {
		return o, fmt.Errorf("--timeout %s: want more than 0", f.timeout)
	}
	o = build.Options{
		From: f.from, Steps: f.steps, CPUs: f.cpus, User: f.user, Format: f.format,
		Timeout: f.timeout, Keep: f.keep, NoVerify: !f.verify, Credentials: f.Credentials(),
	}
	if o.To, err = oci.ParseReference(to); err != nil {
		return o, err
	}
	if f.push != "" {
		push, err := oci.ParseReference(f.push)
		if err != nil {
			return o, fmt.Errorf("--push: %w", err)
		}
		o.Push = &push
	}
	if o.Disk, err = sizeFlag("disk", f.disk); err != nil {
		return o, err
	}
	memory, err := sizeFlag("memory", f.memory)
	if err != nil {
		return o, err
	}
	o.Memory = uint64(memory)
	o.Labels, err = labels(f.labels.Value())
	return o, err
}

// sizeFlag parses a size in bytes; 0 if the flag is not set.
func sizeFlag(name, text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	size, err := units.RAMInBytes(text)
	if err == nil && size < 16<<20 {
		err = errors.New("want at least 16MiB")
	}
	if err != nil {
		return 0, fmt.Errorf("--%s %s: %w", name, text, err)
	}
	return size, nil
}

// labels parses KEY=VALUE.
func labels(texts []string) (map[string]string, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	found := make(map[string]string)
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("--label %s: want KEY=VALUE", text)
		}
		found[key] = value
	}
	return found, nil
}
