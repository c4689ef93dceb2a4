package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containers/image/v5/docker"
	"github.com/containers/image/v5/pkg/blobinfocache/none"
	"github.com/containers/image/v5/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci/format"
)

// TransferOptions of [Fetch] and [Push]; the zero value is fine.
type TransferOptions struct {
	Credentials Credentials
	// Progress may be nil.
	Progress Progress
}

// Fetch copies an image from a registry into an OCI layout, every blob verified
// and unchanged. A layout without a tag gets the tag of from, or "latest".
func Fetch(ctx context.Context, from, to Reference, o TransferOptions) (digest.Digest, error) {
	if !to.IsLayout() || to.digest != "" {
		return "", fmt.Errorf("%w: %s: fetch writes to a layout: oci:PATH or oci:PATH:TAG", ErrReference, to)
	}
	if tagged, ok := from.named.(interface{ Tag() string }); ok && to.tag == "" {
		to.tag = tagged.Tag()
	}
	dest, err := layoutDestination(ctx, to)
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", from, err)
	}
	d, err := transfer(ctx, from, dest, o)
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", from, err)
	}
	return d, nil
}

// Push copies an image from an OCI layout to a registry, every blob verified and
// unchanged; blobs that the registry has are not sent.
func Push(ctx context.Context, from, to Reference, o TransferOptions) (digest.Digest, error) {
	if !from.IsLayout() || to.named == nil {
		return "", fmt.Errorf("%w: push goes from a layout (oci:PATH) to a registry, not from %s to %s", ErrReference, from, to)
	}
	d, err := push(ctx, from, to, o)
	if err != nil {
		return "", fmt.Errorf("pushing %s to %s: %w", from, to, err)
	}
	return d, nil
}

func push(ctx context.Context, from, to Reference, o TransferOptions) (digest.Digest, error) {
	sys, err := o.Credentials.systemContext(to.named)
	if err != nil {
		return "", err
	}
	name, err := docker.NewReference(to.named)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrReference, err)
	}
	dest, err := name.NewImageDestination(ctx, sys)
	if err != nil {
		return "", registryError("", err)
	}
	d, err := transfer(ctx, from, dest, o)
	if err != nil && httpStatus(err) != 0 {
		err = registryError("", err)
	}
	return d, err
}

// transfer copies the image from to dest, which it closes.
func transfer(ctx context.Context, from Reference, dest types.ImageDestination, o TransferOptions) (_ digest.Digest, err error) {
	defer func() { err = errors.Join(err, dest.Close()) }()
	src, err := openSource(ctx, from, o.Credentials)
	if err != nil {
		return "", err
	}
	defer src.Close()
	c := &copier{src: src, dest: dest, progress: progressOrSilent(o.Progress)}
	d, err := c.copyManifest(ctx, from.Digest(), true, 0)
	if err != nil {
		return "", err
	}
	if err := dest.Commit(ctx, nil); err != nil {
		return "", fmt.Errorf("finishing the copy: %w", err)
	}
	return d, nil
}

// copier copies manifests as they are: containers/image's own copy would parse
// the formats that its parser refuses, and needs gpgme.
type copier struct {
	src      source
	dest     types.ImageDestination
	progress Progress
}

// maxIndexDepth bounds indexes in indexes; a digest cannot name itself, but
// somebody can nest for long.
const maxIndexDepth = 8

// copyManifest copies the manifest d, after all that it names. top is true for
// the one that gets the tag.
func (c *copier) copyManifest(ctx context.Context, d digest.Digest, top bool, depth int) (digest.Digest, error) {
	if depth > maxIndexDepth {
		return "", fmt.Errorf("%w: indexes nest deeper than %d", ErrFormat, maxIndexDepth)
	}
	raw, mediaType, d, err := readManifest(ctx, c.src, d)
	if err != nil {
		return "", err
	}
	if format.IsIndex(mediaType) {
		err = c.copyChildren(ctx, raw, depth)
	} else {
		err = c.copyBlobs(ctx, raw, mediaType)
	}
	if err != nil {
		return "", err
	}
	var instance *digest.Digest
	if !top {
		instance = &d
	}
	if err := c.dest.PutManifest(ctx, raw, instance); err != nil {
		return "", fmt.Errorf("writing manifest %s: %w", d, err)
	}
	return d, nil
}

func (c *copier) copyChildren(ctx context.Context, raw []byte, depth int) error {
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return fmt.Errorf("%w: reading index: %w", ErrFormat, err)
	}
	for _, child := range index.Manifests {
		if err := child.Digest.Validate(); err != nil {
			return fmt.Errorf("%w: digest %q: %w", ErrFormat, child.Digest, err)
		}
		if _, err := c.copyManifest(ctx, child.Digest, false, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copyBlobs(ctx context.Context, raw []byte, mediaType string) error {
	m, err := format.ParseManifest(raw, mediaType)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, desc := range append(m.Layers, m.Config) {
		if err := c.copyBlob(ctx, desc); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copyBlob(ctx context.Context, desc v1.Descriptor) (err error) {
	info := types.BlobInfo{Digest: desc.Digest, Size: desc.Size}
	there, _, err := c.dest.TryReusingBlob(ctx, info, none.NoCache, false)
	if err != nil {
		return fmt.Errorf("looking for blob %s: %w", desc.Digest, err)
	}
	if there {
		return nil
	}
	blob, err := c.src.Blob(ctx, desc)
	if err != nil {
		return err
	}
	defer blob.Close()
	transfer := c.progress.Start(descriptorName(desc), desc.Size)
	defer func() { transfer.Done(err) }()
	reader := &countingReader{contextReader{ctx, verify(blob, desc)}, transfer}
	if _, err := c.dest.PutBlob(ctx, reader, info, none.NoCache, false); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	return nil
}
