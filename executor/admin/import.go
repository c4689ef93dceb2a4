package admin

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/define"
)

// importDir, in the store, holds the disks of imported virtual machines.
const importDir = "vms"

// ImportOptions configure [Import].
type ImportOptions struct {
	Settings *config.Settings
	// Image as a job would name it, or a layout.
	Image string
	// Name of the domain; the default is the digest of the image, with a dash for
	// the colon.
	Name string
	// Dir is the directory to create for the disks; the default is one of that name
	// in the store.
	Dir  string
	Pull store.PullOptions
}

// An Imported is a virtual machine that [Import] defined.
type Imported struct {
	Name string
	// Dir holds its disks, which are overlays on the image in the store.
	Dir   string
	Image *oci.Image
	// Dropped lists the elements of the image's domain XML that were dropped.
	Dropped []string
}

// Import pulls an image and defines a virtual machine with it, to clone, or to start,
// change and export. If it fails, it removes the machine; the image stays in the store.
func Import(ctx context.Context, o ImportOptions) (_ *Imported, err error) {
	settings := o.Settings.For(o.Image)
	ref, err := oci.ParseReference(settings.Image)
	if err != nil {
		return nil, err
	}
	if o.Name != "" {
		if err := checkName(o.Name); err != nil {
			return nil, err
		}
	}
	images, err := storeOf(o.Settings)
	if err != nil {
		return nil, err
	}
	// libvirt first: it answers faster than a registry.
	host, err := executor.OpenHost(ctx, o.Settings)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	image, err := images.Pull(ctx, ref, executor.CheckedBy(ctx, host, settings, executor.PullLimits(o.Settings, settings, o.Pull)))
	if err != nil {
		return nil, err
	}
	// Hold the image until the domain records that it uses it.
	defer func() { err = errors.Join(err, image.Close()) }()
	imported := &Imported{Name: o.Name, Dir: o.Dir, Image: image}
	if imported.Name == "" {
		imported.Name = strings.ReplaceAll(image.Digest.String(), ":", "-")
	}
	if imported.Dir == "" {
		imported.Dir = filepath.Join(images.Root(), importDir, imported.Name)
	}
	imported.Dropped, err = define.Define(ctx, host, baseOf(imported, ref, settings))
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", ref, err)
	}
	return imported, nil
}

// baseOf builds the domain to define from the same source as a job's machine.
func baseOf(imported *Imported, ref oci.Reference, settings config.Resolved) define.Spec {
	spec := executor.SpecFor(imported.Image, executor.FetchAndCloneOptions{Settings: settings})
	return define.Spec{
		Name:    imported.Name,
		Source:  spec.Source,
		Network: spec.Network,
		Dir:     imported.Dir,
		Origin:  define.Origin{Image: ref.String(), Digest: imported.Image.Digest.String()},
	}
}

// checkName refuses names that cannot be a directory.
func checkName(name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return fmt.Errorf("%q cannot be the name of a virtual machine", name)
	}
	return nil
}
