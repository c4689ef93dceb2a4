package format

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// An image is a manifest with its config.
type image struct {
	*Manifest
	rawConfig []byte
	config    config
	configErr error // why config is invalid; many artifacts have none
}

// A detector plans images of one format. It returns nil for others.
type detector func(*image) (*Plan, error)

// detectors in the order in which they are tried: the most specific first.
var detectors = []detector{
	isChunked, isSardinecake, isVirter, isKubeVirt, isDiskImage, isEVE, isTart, isLume, isRefused, isContainer, plainArtifact,
}

// DetectPlan recognizes the format of a manifest and plans its disks. config is the content of
// the config blob. The plan depends on nothing else; in particular not on annotations in an
// index. Errors are [errUnknown] or [ErrAmbiguous].
func DetectPlan(m *Manifest, config []byte) (*Plan, error) {
	i := &image{Manifest: m, rawConfig: config}
	if i.config, i.configErr = parseConfig(config); errors.Is(i.configErr, ErrAmbiguous) {
		return nil, i.configErr
	}
	for _, detect := range detectors {
		plan, err := detect(i)
		if err != nil {
			return nil, err
		}
		if plan == nil {
			continue
		}
		if plan.Architecture == "" {
			plan.Architecture = GoArch(i.config.Architecture)
		}
		if plan.OS == "" {
			plan.OS = i.config.OS
		}
		if plan.Created.IsZero() {
			plan.Created = i.config.created()
		}
		if err := plan.check(); err != nil {
			return nil, err
		}
		return plan, nil
	}
	return nil, fmt.Errorf("%w: %s", errUnknown, describe(m))
}

// ISOAlone is the reason why an image with CD-ROM images only is refused.
const ISOAlone = "an ISO image and no disk: it installs a machine, or runs without a disk that a job could write to; want the disk of an installed machine"

// check refuses plans without a disk to boot from.
func (p *Plan) check() error {
	for _, disk := range p.Disks {
		if disk.Content != ISO {
			return nil
		}
	}
	if len(p.Disks) == 0 {
		return fmt.Errorf("%w: it has no disk", errUnknown)
	}
	return fmt.Errorf("%w: %s", errUnknown, ISOAlone)
}

func isChunked(i *image) (*Plan, error) {
	if !hasLayer(i.Manifest, TypeDisk) && !hasLayer(i.Manifest, TypeChunk) {
		return nil, nil
	}
	return chunked(i.Manifest, i.rawConfig)
}

func isSardinecake(i *image) (*Plan, error) {
	if !hasLayer(i.Manifest, typeDomainXML) {
		return nil, nil
	}
	return sardinecake(i.Manifest, i.rawConfig)
}

// hasOrdinaryConfig reports whether the config is that of a container image. Some artifacts
// have one as well.
func (i *image) hasOrdinaryConfig() bool {
	return i.Config.MediaType == v1.MediaTypeImageConfig || i.Config.MediaType == dockerConfig
}

// isRefused recognizes images that are bootable, but contain no disk.
func isRefused(i *image) (*Plan, error) {
	for _, label := range []string{"containers.bootc", "ostree.bootable"} {
		if i.config.Config.Labels[label] != "" {
			return nil, fmt.Errorf("%w: a bootable container image (label %s), which is an OS tree and not a disk; make a disk of it, with bootc-image-builder for example, and push that", errUnknown, label)
		}
	}
	for key := range i.Annotations {
		if strings.HasPrefix(key, "org.unikraft.") {
			return nil, fmt.Errorf("%w: a unikernel of Unikraft (annotation %s); want a disk image", errUnknown, key)
		}
	}
	if i.config.OS == "qemu" && i.hasOrdinaryConfig() {
		return nil, fmt.Errorf("%w: a unikernel of kraftkit (platform qemu/%s); want a disk image", errUnknown, i.config.Architecture)
	}
	return nil, nil
}

// isContainer plans an ordinary container image as a container disk. Its layers show later
// whether there is a disk.
func isContainer(i *image) (*Plan, error) {
	if !i.hasOrdinaryConfig() {
		return nil, nil
	}
	tree := &ContainerDisk{Path: "disk", Directory: true}
	for _, layer := range i.Layers {
		if !isTar(layer.MediaType) {
			return nil, nil
		}
		tree.Layers = append(tree.Layers, Stream{Blobs: []v1.Descriptor{layer}, Compression: Maybe})
	}
	if len(tree.Layers) == 0 {
		return nil, fmt.Errorf("%w: a container image without layers", errUnknown)
	}
	if _, err := plainArtifact(i); err == nil && hasTitle(i.Layers) {
		return nil, nil // `oras push` with the config of a container
	}
	return &Plan{Format: "containerdisk", Disks: []Disk{{Content: Detect, ContainerDisk: tree}}}, nil
}

func hasTitle(layers []v1.Descriptor) bool {
	for _, layer := range layers {
		if layer.Annotations[v1.AnnotationTitle] != "" {
			return true
		}
	}
	return false
}

// isTar reports whether a media type is that of a container layer.
func isTar(mediaType string) bool {
	base, _ := parameters(mediaType)
	return strings.HasPrefix(base, v1.MediaTypeImageLayer) ||
		strings.HasPrefix(base, "application/vnd.docker.image.rootfs.diff.tar")
}

// GoArch converts the kernel's names of architectures, which some tools use, to Go's.
func GoArch(arch string) string {
	switch arch {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return arch
}
