package oci

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// A destination is where an image goes, blob by blob, then manifest by manifest,
// a child before the index that names it.
type destination interface {
	// Has reports whether a blob is there already, whole. It and PutBlob are safe
	// for concurrent use.
	Has(ctx context.Context, desc v1.Descriptor) (bool, error)
	// PutBlob stores a blob. content fails before its end if it is not what desc
	// says; nothing is kept then.
	PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error
	PutManifest(ctx context.Context, m rawManifest) error
	// Commit puts the image under its name. Without it, the name stands for what it
	// stood for before.
	Commit(ctx context.Context, top rawManifest) error
	io.Closer
}

// A discarder is a destination that can take back the blobs it was given. Where
// there is no room, half an image would only be in the way.
type discarder interface{ Discard() error }

// A rawManifest is a manifest or an index as it was found: to be copied byte for
// byte, for only so does it keep its digest.
type rawManifest struct {
	raw       []byte
	mediaType string
	digest    digest.Digest
}

// registryDestination writes to a registry.
type registryDestination struct {
	dest types.ImageDestination
	// want is the digest in the reference, if there is one in place of a tag.
	want digest.Digest
}

// openRegistryDestination asks the registry something at once: containers/image
// remembers a first contact that failed, so that it can only be tried again with
// a new destination.
func openRegistryDestination(ctx context.Context, to Reference, creds Credentials) (destination, error) {
	sys, err := creds.systemContext(to.named)
	if err != nil {
		return nil, err
	}
	name, err := docker.NewReference(to.named)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReference, err)
	}
	dest, err := name.NewImageDestination(ctx, sys)
	if err != nil {
		return nil, registryError("", err)
	}
	r := &registryDestination{dest: dest, want: to.Digest()}
	if _, err := r.Has(ctx, v1.DescriptorEmptyJSON); err != nil {
		return nil, errors.Join(err, dest.Close())
	}
	return r, nil
}

func (r *registryDestination) Has(ctx context.Context, desc v1.Descriptor) (bool, error) {
	has, found, err := r.dest.TryReusingBlob(ctx, types.BlobInfo{Digest: desc.Digest, Size: desc.Size}, none.NoCache, false)
	if err != nil {
		return false, registryError(fmt.Sprintf("looking for blob %s: ", desc.Digest), err)
	}
	return has && (found.Size < 0 || found.Size == desc.Size), nil
}

func (r *registryDestination) PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error {
	put, err := r.dest.PutBlob(ctx, content, types.BlobInfo{Digest: desc.Digest, Size: desc.Size}, none.NoCache, false)
	if err != nil {
		return registryError(fmt.Sprintf("writing blob %s: ", desc.Digest), err)
	}
	if put.Digest != desc.Digest {
		return fmt.Errorf("%w: writing blob %s: the registry keeps it as %s", ErrFormat, desc.Digest, put.Digest)
	}
	return nil
}

func (r *registryDestination) PutManifest(ctx context.Context, m rawManifest) error {
	return r.put(ctx, m, &m.digest)
}

func (r *registryDestination) Commit(ctx context.Context, top rawManifest) error {
	if r.want != "" && r.want != top.digest {
		return fmt.Errorf("%w: the image has the digest %s", ErrReference, top.digest)
	}
	if err := r.put(ctx, top, nil); err != nil {
		return err
	}
	return r.dest.Commit(ctx, nil)
}

// put writes a manifest under its digest, or without one under the name.
func (r *registryDestination) put(ctx context.Context, m rawManifest, instance *digest.Digest) error {
	if err := r.dest.PutManifest(ctx, m.raw, instance); err != nil {
		return registryError(fmt.Sprintf("writing manifest %s: ", m.digest), err)
	}
	return nil
}

func (r *registryDestination) Close() error { return r.dest.Close() }
