package executor

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/hostmachine"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/virt"
)

// PullLimits adds to the options of a pull what the settings of the host and of the
// image say about it, and that the domain XML is judged before a disk is transferred.
func PullLimits(s *config.Settings, image config.Resolved, o store.PullOptions) store.PullOptions {
	o.MaxDisk = image.MaxDisk
	o.Architecture = cmp.Or(o.Architecture, image.Architecture)
	o.StallTimeout = time.Duration(s.Defaults.PullStallTimeout)
	o.Reserve = space.Reserve(s.Defaults.StorageReserve)
	o.Machines = MachinesOf(s)
	return CheckedBy(context.Background(), nil, image, o)
}

// MachinesOf describes the machines of the libvirt in the settings.
func MachinesOf(s *config.Settings) oci.Machines {
	return hostmachine.From(func(ctx context.Context) (*virt.Host, error) { return OpenHost(ctx, s) })
}

// CheckedBy makes a pull judge the image by [CheckImage] before a disk is transferred.
func CheckedBy(ctx context.Context, host *virt.Host, image config.Resolved, o store.PullOptions) store.PullOptions {
	o.Check = func(i *oci.Inspection) error { return CheckImage(ctx, host, image, i) }
	return o
}

// CheckImage judges an image by what is known of it before its disks are there: its
// domain XML, and its architecture unless host is nil.
func CheckImage(ctx context.Context, host *virt.Host, settings config.Resolved, i *oci.Inspection) error {
	source := domain.Source{DomainXML: i.DomainXML, Trusted: settings.Trusted, Template: settings.Domain, Emulate: settings.Architecture, Architecture: settings.MachineArchitecture(i.Architecture)}
	for n, d := range i.Disks {
		if d.Content != "iso" {
			// How many there are, and which backs which, does not matter here.
			source.Disks = []disk.Disk{{Name: cmp.Or(d.Name, fmt.Sprintf("disk-%d", n)), Format: "raw"}}
			break
		}
	}
	if host == nil {
		return domain.Check(source, nil)
	}
	architectures, err := host.Architectures(ctx)
	if err != nil {
		return err
	}
	return domain.Check(source, architectures)
}
