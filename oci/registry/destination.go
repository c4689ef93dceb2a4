package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containers/image/v5/docker/reference"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry/distribution"
	"gitlab-sardine-executor/oci/transport"
)

// registryDestination writes to a registry.
type registryDestination struct{ endpoint }

// OpenDestination asks the registry something at once, which tells early
// whether it can be written to.
func OpenDestination(ctx context.Context, to oci.Reference, creds Credentials, stall time.Duration) (transport.Destination, error) {
	sys := creds.environment()
	named, err := namedOf(to)
	if err != nil {
		return nil, err
	}
	rule, err := findRule(sys, named.Name())
	if err != nil {
		return nil, err
	}
	account, err := creds.accountFor(sys, named, named)
	if err != nil {
		return nil, err
	}
	o := distribution.Options{Push: true, Insecure: rule != nil && rule.Insecure, StallTimeout: stall}
	e, err := newEndpoint(sys, named, account, o)
	if err != nil {
		return nil, err
	}
	r := &registryDestination{e}
	if _, err := r.Has(ctx, v1.DescriptorEmptyJSON); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *registryDestination) Has(ctx context.Context, desc v1.Descriptor) (bool, error) {
	has, size, err := r.client.HasBlob(ctx, desc.Digest)
	if err != nil {
		return false, fmt.Errorf("looking for blob %s: %w", desc.Digest, r.explain(err))
	}
	return has && (size < 0 || size == desc.Size), nil
}

func (r *registryDestination) PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error {
	if err := r.client.PutBlob(ctx, desc.Digest, desc.Size, content); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, r.explain(err))
	}
	return nil
}

func (r *registryDestination) PutManifest(ctx context.Context, m transport.RawManifest) error {
	return r.put(ctx, m, m.Digest.String())
}

func (r *registryDestination) Commit(ctx context.Context, top transport.RawManifest) error {
	if want, ok := r.name.(reference.Digested); ok && want.Digest() != top.Digest {
		return fmt.Errorf("%w: the image has the digest %s", oci.ErrReference, top.Digest)
	}
	return r.put(ctx, top, tagOrDigest(r.name))
}

// put writes a manifest under its digest, or under the tag.
func (r *registryDestination) put(ctx context.Context, m transport.RawManifest, as string) error {
	if err := r.client.PutManifest(ctx, as, m.MediaType, m.Raw); err != nil {
		return fmt.Errorf("writing manifest %s: %w", m.Digest, r.explain(err))
	}
	return nil
}
