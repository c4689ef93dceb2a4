package oci

import (
	"context"
	"fmt"
	"time"
)

// openSource connects to a registry at once; stall is the time that it may make no
// progress, 0 for the default.
func openSource(ctx context.Context, ref Reference, creds Credentials, stall time.Duration) (source, error) {
	switch {
	case ref.IsLayout():
		return openLayout(ref)
	case ref.IsRegistry():
		return openRegistry(ctx, ref, creds, stall)
	}
	return nil, fmt.Errorf("%w: empty", ErrReference)
}

// openPatiently opens the source of an image, and tries again what may pass.
func openPatiently(ctx context.Context, ref Reference, creds Credentials, stall time.Duration, p patience) (source, error) {
	return retry(ctx, p.opening(), func() (source, error) { return openSource(ctx, ref, creds, stall) })
}
