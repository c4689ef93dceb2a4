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

func openSource(ctx context.Context, ref oci.Reference, creds registry.Credentials, stall time.Duration) (transport.Source, error) {
	switch {
	case ref.IsLayout():
		return layout.Open(ref)
	case ref.File() != "":
		return diskfile.Open(ctx, ref.File())
	case ref.IsRegistry():
		return registry.Open(ctx, ref, creds, stall)
	}
	return nil, fmt.Errorf("%w: it is empty", oci.ErrReference)
}

// Open opens the registry or layout of an image, with retries. stall is the stall timeout of
// a registry; 0 means the default.
func Open(ctx context.Context, ref oci.Reference, creds registry.Credentials, stall time.Duration, p registry.RetryPolicy) (transport.Source, error) {
	return registry.Retry(ctx, p.FirstContact(), func() (transport.Source, error) { return openSource(ctx, ref, creds, stall) })
}
