// Package hostmachine makes images of the virtual machines that libvirt has on this host.
package hostmachine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// timeout bounds the questions to libvirt about one machine.
const timeout = 30 * time.Second

// From describes virtual machines of the host that open connects to. It does not connect before
// the first question.
func From(open func(context.Context) (*virt.Host, error)) oci.Machines {
	return func(ctx context.Context, name string) (*oci.Machine, error) {
		host, err := open(ctx)
		if err != nil {
			return nil, err
		}
		defer host.Close()
		return describe(ctx, host, name)
	}
}

func describe(ctx context.Context, host *virt.Host, name string) (*oci.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var unfit define.UnfitError
	captured, err := define.Capture(ctx, host, name)
	switch {
	case errors.Is(err, errdefs.ErrNoDomain):
		return nil, fmt.Errorf("%w: libvirt has no virtual machine of this name (virsh -c %s list --all)", oci.ErrNotFound, host.URI())
	case errors.Is(err, define.ErrRunning), errors.As(err, &unfit):
		return nil, fmt.Errorf("%w: %w", oci.ErrFormat, err)
	case err != nil:
		return nil, err
	}
	m := &oci.Machine{DomainXML: captured.DomainXML, Architecture: captured.Architecture}
	for _, d := range captured.Disks {
		m.Disks = append(m.Disks, oci.MachineDisk{Path: d.Path, Name: d.Name, Format: d.Format, CDROM: d.CDROM})
	}
	return m, nil
}
