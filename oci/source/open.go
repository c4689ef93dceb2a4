package source

import (
	"context"
	"fmt"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transport"
)

// openSource connects to a registry at once; stall is the time that it may make no
// progress, 0 for the default.
func openSource(ctx context.Context, ref oci.Reference, creds registry.Credentials, stall time.Duration) (transport.Source, error) {
	switch {
	case ref.IsLayout():
		return layout.Open(ref)
	case ref.IsRegistry():
		return registry.Open(ctx, ref, creds, stall)
	}
	return nil, fmt.Errorf("%w: empty", oci.ErrReference)
}

// Open opens the source of an image, and tries again what may pass.
func Open(ctx context.Context, ref oci.Reference, creds registry.Credentials, stall time.Duration, p registry.Patience) (transport.Source, error) {
	return registry.Retry(ctx, p.Opening(), func() (transport.Source, error) { return openSource(ctx, ref, creds, stall) })
}
