package admin

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
)

// ExportVM packs a virtual machine that is shut down as an image, and puts it into
// the layout to. o says how; disks, domain XML and architecture are the machine's.
// The error is [vm.ErrRunning] if it runs.
func ExportVM(ctx context.Context, settings *config.Settings, name string, to oci.Reference, o oci.ExportOptions) (digest.Digest, error) {
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return "", err
	}
	defer host.Close()
	sealed, err := sealVM(ctx, host, name)
	if err != nil {
		return "", fmt.Errorf("export %s: %w", name, err)
	}
	o.DomainXML, o.Architecture, o.Disks = sealed.DomainXML, sealed.Architecture, nil
	for _, d := range sealed.Disks {
		o.Disks = append(o.Disks, oci.ExportDisk{Path: d.Path, Name: d.Name, Format: d.Format, CDROM: d.CDROM})
	}
	d, err := oci.Export(ctx, to, o)
	if err != nil {
		return "", err
	}
	// Nothing keeps others from starting it while its disks are read.
	if _, err := sealVM(ctx, host, name); err != nil {
		return "", fmt.Errorf("export %s: it changed while it was packed, and the image may be damaged: %w", name, err)
	}
	return d, nil
}

func sealVM(ctx context.Context, host *vm.Host, name string) (*vm.Sealed, error) {
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	return vm.Seal(ctx, host, name)
}
