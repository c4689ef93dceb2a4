package format

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	diskImagePrefix = "application/vnd.diskimage."
	kubeVirtPrefix  = "application/vnd.kubevirt.virtualmachine"
	kubeVirtDisk    = "application/vnd.kubevirt.disk.raw+zstd"
)

// IsDiskArtifact recognizes artifact types of disks in an index.
func IsDiskArtifact(artifactType string) bool {
	return strings.HasPrefix(artifactType, diskImagePrefix) || isKubeVirtType(artifactType)
}

func isKubeVirtType(artifactType string) bool {
	return artifactType == kubeVirtPrefix+".v1" || artifactType == kubeVirtPrefix+"template.v1"
}

// artifactType returns the artifact type, or else the media type of the config (OCI image
// specification 1.1, guidelines for artifact usage).
func (i *image) artifactType() string {
	if i.ArtifactType != "" {
		return i.ArtifactType
	}
	return i.Config.MediaType
}

// isKubeVirt plans a virtual machine or template exported by KubeVirt: each layer is a raw
// disk.
func isKubeVirt(i *image) (*Plan, error) {
	if !isKubeVirtType(i.artifactType()) && !hasLayer(i.Manifest, kubeVirtDisk) {
		return nil, nil
	}
	p := &Plan{Format: "kubevirt"}
	for _, layer := range i.Layers {
		if layer.MediaType != kubeVirtDisk {
			continue
		}
		names := layer.Annotations["io.kubevirt.disk.names"]
		if names == "" {
			names = layer.Annotations["io.kubevirt.disk.name"]
		}
		for name := range strings.SplitSeq(names, ",") {
			if name == "" {
				name = fmt.Sprintf("disk-%d", len(p.Disks))
			}
			p.Disks = append(p.Disks, Disk{
				Name: name + ".raw", Content: Raw,
				Streams: []Stream{{Blobs: []v1.Descriptor{layer}, Compression: Zstd}},
			})
		}
	}
	if len(p.Disks) == 0 {
		return nil, fmt.Errorf("%w: a KubeVirt machine without a layer of type %s: %s", errUnknown, kubeVirtDisk, describe(i.Manifest))
	}
	return p, nil
}

// isDiskImage plans artifacts of the bootc family, Konflux and cosa: the only layer is the
// disk. Its compression is detected, because some layers are not compressed as their name
// says. Without an artifact type, the media type of the layer counts.
func isDiskImage(i *image) (*Plan, error) {
	kind, ok := strings.CutPrefix(i.artifactType(), diskImagePrefix)
	if !ok && len(i.Layers) == 1 {
		base, _ := parameters(i.Layers[0].MediaType)
		kind, ok = strings.CutPrefix(base, diskImagePrefix)
	}
	if !ok {
		return nil, nil
	}
	if len(i.Layers) != 1 {
		return nil, fmt.Errorf("%w: a disk image artifact of %d layers, want one: %s", errUnknown, len(i.Layers), describe(i.Manifest))
	}
	d := Disk{Name: "disk.img", Content: Detect, Streams: []Stream{{Blobs: i.Layers, Compression: Maybe}}}
	switch kind, _, _ = strings.Cut(kind, "."); kind {
	case "qcow2":
		d.Name, d.Content = "disk.qcow2", QCOW2
	case "raw":
		d.Name, d.Content = "disk.raw", Raw
	case "iso":
		d.Name, d.Content = "disk.iso", ISO
	case "vmdk", "vhd", "vhdx", "ami", "gce", "ova", "vdi":
		return nil, fmt.Errorf("%w: a disk image of kind %q; want qcow2 or raw", errUnknown, kind)
	}
	return &Plan{Format: "diskimage", Disks: []Disk{d}}, nil
}

const (
	eveLayer = "application/vnd.lfedge.disk.layer.v1"
	eveRole  = "org.lfedge.eci.role"
	eveRoot  = "org.lfedge.eci.artifact.root"
)

// isEVE plans an edge container image: layers with the role disk-root and those of other
// disks, or, in older images, a file in a container image that a label names.
func isEVE(i *image) (*Plan, error) {
	p := &Plan{Format: "eve"}
	for _, layer := range i.Layers {
		base, _ := parameters(layer.MediaType)
		kind, ok := strings.CutPrefix(base, eveLayer)
		role := layer.Annotations[eveRole]
		if !ok || !strings.HasPrefix(role, "disk-") {
			continue
		}
		d, err := eveDisk(layer, strings.TrimPrefix(kind, "+"), len(p.Disks))
		if err != nil {
			return nil, err
		}
		if role == "disk-root" {
			p.Disks = append([]Disk{d}, p.Disks...)
		} else {
			p.Disks = append(p.Disks, d)
		}
	}
	if len(p.Disks) > 0 {
		return p, nil
	}
	root := i.config.Config.Labels[eveRoot]
	if root == "" {
		return nil, nil
	}
	tree := &ContainerDisk{Path: strings.TrimPrefix(path.Clean("/"+root), "/")}
	for _, layer := range i.Layers {
		if !isTar(layer.MediaType) {
			return nil, fmt.Errorf("%w: an EVE image with a layer of type %q", errUnknown, layer.MediaType)
		}
		tree.Layers = append(tree.Layers, Stream{Blobs: []v1.Descriptor{layer}, Compression: Maybe})
	}
	p.Disks = []Disk{{Name: path.Base(tree.Path), Content: Detect, ContainerDisk: tree}}
	return p, nil
}

func eveDisk(layer v1.Descriptor, kind string, n int) (Disk, error) {
	d := Disk{Streams: []Stream{{Blobs: []v1.Descriptor{layer}, Compression: Maybe}}}
	switch strings.ToLower(kind) {
	case "qcow2", "qcow":
		d.Content = QCOW2
	case "raw":
		// A raw disk may begin with anything.
		d.Content, d.Streams[0].Compression = Raw, None
	case "iso":
		d.Content, d.Streams[0].Compression = ISO, None
	case "":
		d.Content = Detect
	default:
		return Disk{}, fmt.Errorf("%w: an EVE disk of type %q; want qcow2 or raw", errUnknown, layer.MediaType)
	}
	if d.Name = layer.Annotations[v1.AnnotationTitle]; d.Name == "" {
		d.Name = fmt.Sprintf("disk-%d", n)
	}
	d.Name = path.Base(d.Name)
	return d, nil
}
