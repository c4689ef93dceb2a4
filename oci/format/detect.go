package format

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// An image is what is known of an image before any layer is read.
type image struct {
	*Manifest
	rawConfig []byte
	config    config
	configErr error // why config could not be read; many artifacts have none
}

// A detector plans images of its format. It returns nil for all others.
type detector func(*image) (*Plan, error)

// detectors in the order in which they are asked: the more telling a mark, the
// earlier.
var detectors = []detector{
	isChunked, isSardinecake, isVirter, isKubeVirt, isDiskImage, isEVE, isTart, isLume, isRefused, isContainer, plainArtifact,
}

// DetectPlan recognises the format of a manifest and plans its disks. config is
// the content of the config blob. The plan follows from these two alone: what an index
// says of the manifest is not heard. Any error is an [ErrUnknown] or an [ErrAmbiguous].
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
			plan.Architecture = goArch(i.config.Architecture)
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
	return nil, fmt.Errorf("%w: %s", ErrUnknown, describe(m))
}

// ISOAlone says why an image of nothing but CD-ROM images is refused.
const ISOAlone = "an ISO image and no disk: it installs a machine, or runs without a disk that a job could write to; want the disk of an installed machine"

// check finds plans that make no machine.
func (p *Plan) check() error {
	for _, disk := range p.Disks {
		if disk.Content != ISO {
			return nil
		}
	}
	if len(p.Disks) == 0 {
		return fmt.Errorf("%w: it has no disk", ErrUnknown)
	}
	return fmt.Errorf("%w: %s", ErrUnknown, ISOAlone)
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

// hasOrdinaryConfig: the config is that of a container image. Some artifacts have
// one too.
func (i *image) hasOrdinaryConfig() bool {
	return i.Config.MediaType == v1.MediaTypeImageConfig || i.Config.MediaType == dockerConfig
}

// isRefused knows what looks like a disk to nobody but its maker.
func isRefused(i *image) (*Plan, error) {
	for _, label := range []string{"containers.bootc", "ostree.bootable"} {
		if i.config.Config.Labels[label] != "" {
			return nil, fmt.Errorf("%w: a bootable container image (label %s), which is an OS tree and not a disk; make a disk of it, with bootc-image-builder for example, and push that", ErrUnknown, label)
		}
	}
	for key := range i.Annotations {
		if strings.HasPrefix(key, "org.unikraft.") {
			return nil, fmt.Errorf("%w: a unikernel of Unikraft (annotation %s); want a disk image", ErrUnknown, key)
		}
	}
	if i.config.OS == "qemu" && i.hasOrdinaryConfig() {
		return nil, fmt.Errorf("%w: a unikernel of kraftkit (platform qemu/%s); want a disk image", ErrUnknown, i.config.Architecture)
	}
	return nil, nil
}

// isContainer takes the file system of an ordinary container image for a
// containerDisk: whether there is a disk in it, its layers tell.
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
		return nil, fmt.Errorf("%w: a container image without layers", ErrUnknown)
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

// isTar knows the types of container layers.
func isTar(mediaType string) bool {
	base, _ := parameters(mediaType)
	return strings.HasPrefix(base, v1.MediaTypeImageLayer) ||
		strings.HasPrefix(base, "application/vnd.docker.image.rootfs.diff.tar")
}
