package format

import (
	"fmt"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// ChooseChild finds the manifest, or the nested index, for an architecture (in
// Go's words) in an index. What a child says of its disk counts before its
// platform: podman and others put bootable container images beside the disks.
//
// What an index says of a child decides which one is taken, never how it is read:
// another index could say something else of it.
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
		return v1.Descriptor{}, fmt.Errorf("%w: the index has nothing for %s, only [%s]", ErrUnknown, arch, strings.Join(offered, ", "))
	}
	return best, nil
}

// Ranks of children, the best first; steps between them are for the platform's OS.
const (
	rankDiskType = iota * 10
	rankArtifact
	rankPlatform
	rankNested
	rankUnknown
	rankNone
)

// rankOf says how good a child is for an architecture.
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
	// cosa writes the name of its platform here; "metal" and the clouds boot less
	// well.
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
