package source

import (
	"context"
	"fmt"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/diskfile"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transport"
)

func openSource(ctx context.Context, ref oci.Reference, o Options) (transport.Source, error) {
	switch {
	case ref.IsLayout():
		return layout.Open(ref)
	case ref.File() != "":
		return diskfile.Open(ctx, ref.File())
	case ref.Machine() != "":
		machine, err := o.machine(ctx, ref)
		if err != nil {
			return nil, err
		}
		return diskfile.OpenMachine(ctx, machine)
	case ref.IsRegistry():
		return registry.Open(ctx, ref, o.Credentials, o.StallTimeout)
	}
	return nil, fmt.Errorf("%w: it is empty", oci.ErrReference)
}

// Options of [Open]; the zero value is fine for registries and layouts.
type Options struct {
	Credentials registry.Credentials
	// StallTimeout is how long a registry may make no progress; 0 means the default.
	StallTimeout time.Duration
	// Machines describes virtual machines of this host; nil if there are none.
	Machines oci.Machines
}

func (o Options) machine(ctx context.Context, ref oci.Reference) (*oci.Machine, error) {
	if o.Machines == nil {
		return nil, fmt.Errorf("%w: virtual machines of libvirt cannot be used here", oci.ErrReference)
	}
	return o.Machines(ctx, ref.Machine())
}

// Open opens the registry or layout of an image, with retries, or a file or virtual machine of
// this host.
func Open(ctx context.Context, ref oci.Reference, o Options, p registry.RetryPolicy) (transport.Source, error) {
	return registry.Retry(ctx, p.FirstContact(), func() (transport.Source, error) { return openSource(ctx, ref, o) })
}

// Identify returns what changes if the content of a file or virtual machine of this host
// changes, without reading the content. It is empty for other images.
func Identify(ctx context.Context, ref oci.Reference, o Options) (string, error) {
	switch {
	case ref.File() != "":
		return diskfile.Identify(ref.File())
	case ref.Machine() != "":
		machine, err := o.machine(ctx, ref)
		if err != nil {
			return "", err
		}
		return diskfile.IdentifyMachine(machine)
	}
	return "", nil
}
