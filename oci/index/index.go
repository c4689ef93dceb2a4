package index

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Choose selects the manifest or nested index for an architecture (Go's name) in an
// index. Properties of disks count more than the platform: some indexes have bootable
// container images beside the disks.
//
// The index only decides which child is selected, not how it is read: another index could
// describe it differently. Errors are [oci.ErrFormat].
func Choose(index *v1.Index, arch string) (v1.Descriptor, error) {
	var best v1.Descriptor
	bestRank := rankNone
	for _, child := range index.Manifests {
		if isAttestation(child) {
			continue
		}
		if rank := rankOf(child, arch); rank < bestRank {
			best, bestRank = child, rank
		}
	}
	if bestRank == rankNone {
		return v1.Descriptor{}, fmt.Errorf("%w: the index has nothing for QEMU on %s, only %s%s", oci.ErrFormat, arch, Offered(index), otherArchitecture(index, arch))
	}
	return best, nil
}

// Ranks of children, the best first. The platform's OS adds steps in between.
const (
	rankDiskType = iota * 10
	rankArtifact
	rankPlatform
	rankNested
	rankUnknown
	rankNone
)

// rankOf ranks a child for an architecture.
func rankOf(child v1.Descriptor, arch string) int {
	has, system := "", ""
	if child.Platform != nil {
		has, system = format.GoArch(child.Platform.Architecture), child.Platform.OS
	}
	if has != "" && has != arch {
		return rankNone
	}
	rank := rankUnknown
	diskType := child.Annotations["disktype"]
	switch {
	case diskType != "" && diskType != "qemu":
		return rankNone // for another hypervisor
	case diskType != "":
		rank = rankDiskType
	case format.IsDiskArtifact(child.ArtifactType):
		rank = rankArtifact
	case has != "":
		rank = rankPlatform
	case format.IsIndex(child.MediaType):
		rank = rankNested
	}
	// cosa writes the name of its platform here. "qemu" is better than "metal" and clouds.
	for step, name := range []string{"qemu", "linux", ""} {
		if system == name {
			return rank + step
		}
	}
	return rank + 3
}

// isAttestation recognizes what BuildKit adds for each platform.
func isAttestation(child v1.Descriptor) bool {
	return child.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
}

// maxOffered limits the children in an error, and maxDescription their descriptions, in
// characters.
const (
	maxOffered     = 12
	maxDescription = 80
)

// architectures of machines that the driver can start, as Go names them.
var architectures = []string{"amd64", "arm64"}

// Offered lists the children of an index for people.
func Offered(index *v1.Index) string {
	var offered []string
	for _, child := range index.Manifests {
		if text := describeChild(child); !isAttestation(child) && !slices.Contains(offered, text) {
			offered = append(offered, text)
		}
	}
	if more := len(offered) - maxOffered; more > 0 {
		offered = append(offered[:maxOffered], fmt.Sprintf("%d more", more))
	}
	return "[" + strings.Join(offered, ", ") + "]"
}

// otherArchitecture says how to use the image for another architecture, if the index has one.
func otherArchitecture(index *v1.Index, arch string) string {
	for _, child := range index.Manifests {
		if p := child.Platform; p != nil && !isAttestation(child) {
			if other := format.GoArch(p.Architecture); slices.Contains(architectures, other) && other != arch && rankOf(child, other) < rankNone {
				return fmt.Sprintf("; to emulate it, set architecture = %q for the image", other)
			}
		}
	}
	return ""
}

func describeChild(child v1.Descriptor) string {
	var parts []string
	if p := child.Platform; p != nil {
		parts = append(parts, p.OS+"/"+p.Architecture)
	}
	if t := child.Annotations["disktype"]; t != "" {
		parts = append(parts, "disktype "+t)
	}
	if child.ArtifactType != "" {
		parts = append(parts, child.ArtifactType)
	}
	if len(parts) == 0 {
		return "something without a platform"
	}
	text := []rune(strings.TrimSpace(strings.Join(parts, " ")))
	return string(text[:min(len(text), maxDescription)])
}
