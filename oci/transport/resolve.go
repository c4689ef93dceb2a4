package transport

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Resolve returns the manifest for arch and its digest: doc itself, or a manifest that the
// index doc leads to.
func Resolve(ctx context.Context, src Source, doc document, arch string) (*format.Manifest, digest.Digest, error) {
	for depth := 0; doc.Index != nil; depth++ {
		if depth == MaxIndexDepth {
			return nil, "", fmt.Errorf("%w: indexes nest deeper than %d", oci.ErrFormat, MaxIndexDepth)
		}
		child, err := format.ChooseChild(doc.Index, arch)
		if err != nil {
			return nil, "", FormatError(err)
		}
		if doc, err = ReadDocument(ctx, src, child); err != nil {
			return nil, "", err
		}
	}
	return doc.Manifest, doc.Digest, nil
}

func Plan(ctx context.Context, src Source, m *format.Manifest) (*format.Plan, error) {
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
