package format

import (
	"fmt"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// ChooseChild selects the manifest or nested index for an architecture (Go's name) in an
// index. Properties of disks count more than the platform: some indexes have bootable
// container images beside the disks.
//
// The index only decides which child is selected, not how it is read: another index could
// describe it differently.
func ChooseChild(index *v1.Index, arch string) (v1.Descriptor, error) {
	var best v1.Descriptor
	bestRank := rankNone
	var offered []string
	for _, child := range index.Manifests {
		if child.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		offered = append(offered, describeChild(child))
		if rank := rankOf(child, arch); rank < bestRank {
			best, bestRank = child, rank
		}
	}
	if bestRank == rankNone {
		return v1.Descriptor{}, fmt.Errorf("%w: the index has nothing for %s, only [%s]", errUnknown, arch, strings.Join(offered, ", "))
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
		has, system = goArch(child.Platform.Architecture), child.Platform.OS
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
	case isDiskArtifact(child.ArtifactType):
		rank = rankArtifact
	case has != "":
		rank = rankPlatform
	case kindOf(child.MediaType) == anIndex:
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
	return strings.TrimSpace(strings.Join(parts, " "))
}

// goArch converts the kernel's names of architectures, which some tools use, to Go's.
func goArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}
