package format

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// ChooseChild finds the manifest for an architecture (in Go's words) in an index.
func ChooseChild(raw []byte, arch string) (digest.Digest, error) {
	var index v1.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return "", fmt.Errorf("%w: the index is not valid JSON: %w", ErrUnknown, err)
	}
	var offered []string
	for _, child := range index.Manifests {
		if child.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		if err := child.Digest.Validate(); err != nil {
			return "", fmt.Errorf("%w: digest %q: %w", ErrUnknown, child.Digest, err)
		}
		has := ""
		if child.Platform != nil {
			has = goArch(child.Platform.Architecture)
		}
		if has == "" || has == arch {
			return child.Digest, nil
		}
		offered = append(offered, has)
	}
	return "", fmt.Errorf("%w: the index has nothing for %s, only for [%s]", ErrUnknown, arch, strings.Join(offered, ", "))
}

// goArch turns the kernel's names of architectures, which some tools write, into
// Go's.
func goArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}
