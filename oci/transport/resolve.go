package transport

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Resolve finds the manifest for arch and its digest: the one given, or one that
// the index given leads to.
func Resolve(ctx context.Context, src Source, doc document, arch string) (*format.Manifest, digest.Digest, error) {
	for depth := 0; doc.Index != nil; depth++ {
		// A digest cannot name itself, but somebody can nest for long.
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

// ShortDigest is how a blob is called in front of people.
func ShortDigest(desc v1.Descriptor) string {
	hex := desc.Digest.Encoded()
	return hex[:min(12, len(hex))]
}
