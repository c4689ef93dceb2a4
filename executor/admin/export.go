package admin

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/virt"
)

// ExportVM exports a domain that is shut off as an image into the layout to. Disks,
// domain XML and architecture in o are replaced by the domain's. It is an error if it is
// running.
func ExportVM(ctx context.Context, settings *config.Settings, name string, to oci.Reference, o export.Options) (digest.Digest, error) {
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return "", err
	}
	defer host.Close()
	captured, err := captureVM(ctx, host, name)
	if err != nil {
		return "", fmt.Errorf("export %s: %w", name, err)
	}
	o.DomainXML, o.Architecture, o.Disks = captured.DomainXML, captured.Architecture, nil
	for _, d := range captured.Disks {
		o.Disks = append(o.Disks, export.Disk{Path: d.Path, Name: d.Name, Format: d.Format, CDROM: d.CDROM})
	}
	d, err := export.Export(ctx, to, o)
	if err != nil {
		return "", err
	}
	// The domain may have started while its disks were read.
	if _, err := captureVM(ctx, host, name); err != nil {
		return "", fmt.Errorf("export %s: it changed during the export, and the image may be damaged: %w", name, err)
	}
	return d, nil
}

func captureVM(ctx context.Context, host *virt.Host, name string) (*define.Captured, error) {
	ctx, cancel := context.WithTimeout(ctx, executor.LibvirtTimeout)
	defer cancel()
	return define.Capture(ctx, host, name)
}
