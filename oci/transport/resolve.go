package transport

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/index"
)

// resolve returns the manifest for arch and its digest: doc itself, or a manifest that the
// index doc leads to.
func resolve(ctx context.Context, src Source, doc document, arch string) (*format.Manifest, digest.Digest, error) {
	for depth := 0; doc.Index != nil; depth++ {
		if depth == MaxIndexDepth {
			return nil, "", fmt.Errorf("%w: indexes nest deeper than %d", oci.ErrFormat, MaxIndexDepth)
		}
		child, err := index.Choose(doc.Index, arch)
		if err != nil {
			return nil, "", err
		}
		if doc, err = ReadDocument(ctx, src, child); err != nil {
			return nil, "", err
		}
	}
	return doc.Manifest, doc.Digest, nil
}

// ResolvePlan returns the manifest for arch, its digest and its plan: those of doc itself, or of
// a manifest that the index doc leads to. If the
// manifest is no usable image, the error says what else the index offers.
func ResolvePlan(ctx context.Context, src Source, doc document, arch string) (*format.Manifest, digest.Digest, *format.Plan, error) {
	m, d, err := resolve(ctx, src, doc, arch)
	if err != nil {
		return nil, "", nil, err
	}
	plan, err := planOf(ctx, src, m)
	if errors.Is(err, oci.ErrFormat) && doc.Index != nil && len(doc.Index.Manifests) > 1 {
		err = fmt.Errorf("%w (%s of the index, which offers %s)", err, d, index.Offered(doc.Index))
	}
	return m, d, plan, err
}

func planOf(ctx context.Context, src Source, m *format.Manifest) (*format.Plan, error) {
	config, err := ReadBlob(ctx, src, m.Config, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	plan, err := format.DetectPlan(m, config)
	if err != nil {
		return nil, FormatError(err)
	}
	return plan, nil
}

// ShortDigest returns the first 12 digits of a blob's digest, for people.
func ShortDigest(desc v1.Descriptor) string {
	hex := desc.Digest.Encoded()
	return hex[:min(12, len(hex))]
}
