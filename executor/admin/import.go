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
	"gitlab-sardine-executor/vm"
)

// basesDir is where the disks of imported virtual machines lie, in the store.
const basesDir = "vms"

// ImportOptions say what [Import] defines.
type ImportOptions struct {
	Settings *config.Settings
	// Image as a job would name it, or a layout.
	Image string
	// Name of the domain; empty means the digest of the image, with a dash in place
	// of the colon.
	Name string
	// Dir is the directory to make for the machine's disks; empty means one of that
	// name in the store.
	Dir  string
	Pull oci.PullOptions
}

// An Imported is a virtual machine that was made of an image.
type Imported struct {
	Name string
	// Dir holds its disks: overlays, that the image in the store stays what it is.
	Dir   string
	Image *oci.Image
	// Dropped is what the image's domain asked for and did not get.
	Dropped []string
}

// Import pulls an image and defines a virtual machine on it: a base to be cloned,
// or to be started, changed and exported again. If it fails, nothing of the machine
// is left; the image stays in the store.
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
	store, err := storeOf(o.Settings)
	if err != nil {
		return nil, err
	}
	// libvirt first: it is the quicker to say that it is not there.
	host, err := executor.OpenHost(ctx, o.Settings)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	image, err := store.Pull(ctx, ref, o.Pull)
	if err != nil {
		return nil, err
	}
	// Held until the domain says that it stands on the image.
	defer func() { err = errors.Join(err, image.Close()) }()
	imported := &Imported{Name: o.Name, Dir: o.Dir, Image: image}
	if imported.Name == "" {
		imported.Name = strings.ReplaceAll(image.Digest.String(), ":", "-")
	}
	if imported.Dir == "" {
		imported.Dir = filepath.Join(store.Root(), basesDir, imported.Name)
	}
	imported.Dropped, err = vm.Define(ctx, host, baseOf(imported, ref, settings))
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", ref, err)
	}
	return imported, nil
}

// baseOf is where an image becomes a base: of the domain that a job's machine would
// be made of.
func baseOf(imported *Imported, ref oci.Reference, settings config.Resolved) vm.BaseSpec {
	spec := executor.SpecFor(imported.Image, executor.FetchAndCloneOptions{Settings: settings})
	return vm.BaseSpec{
		Name:             imported.Name,
		DomainXML:        spec.DomainXML,
		Trusted:          spec.Trusted,
		Template:         spec.Template,
		Architecture:     spec.Architecture,
		UEFI:             spec.UEFI,
		Disks:            spec.Disks,
		Network:          spec.Network,
		Accel:            spec.Accel,
		OmitBackingStore: spec.OmitBackingStore,
		Dir:              imported.Dir,
		Origin:           vm.Origin{Image: ref.String(), Digest: imported.Image.Digest.String()},
	}
}

// checkName finds names that could not be a directory.
func checkName(name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return fmt.Errorf("%q cannot be the name of a virtual machine", name)
	}
	return nil
}
