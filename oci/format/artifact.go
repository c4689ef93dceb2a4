package format

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Artifact is the format of images in which only the name or type of a layer says what it is.
const Artifact = "artifact"

// unpackAnnotation marks the layer of a directory that `oras push` packed: a tar archive of the
// name in the title (oras.land/oras-go/v2/content/file, AnnotationUnpack).
const unpackAnnotation = "io.deis.oras.content.unpack"

// plainArtifact plans artifacts of `oras push` and `podman artifact add`: a layer is the disk
// file, recognized by its media type or title, or else a directory with the disk file.
func plainArtifact(i *image) (*Plan, error) {
	m := i.Manifest
	var found []Disk
	for _, layer := range m.Layers {
		d, ok := plainDisk(layer)
		repeated := slices.ContainsFunc(found, func(other Disk) bool {
			return other.Name == d.Name && other.Content == d.Content && other.Streams[0].Blobs[0].Digest == layer.Digest
		})
		if ok && !repeated {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return &Plan{Format: Artifact, Disks: found}, nil
	case 0:
		if folder := orasFolder(m); folder != nil {
			return &Plan{Format: Artifact, Disks: []Disk{{Content: Detect, ContainerDisk: folder}}}, nil
		}
		return nil, fmt.Errorf("%w: no layer is a disk: %s; want a layer of type application/vnd.qemu.qcow2, or one titled *.qcow2, *.img or *.raw, or a directory with one (oras push)", errUnknown, describe(m))
	}
	var names []string
	for _, d := range found {
		names = append(names, fmt.Sprintf("%q (%s)", d.Name, d.Streams[0].Blobs[0].Digest))
	}
	return nil, fmt.Errorf("%w: several layers could be the disk: %s; want one", errUnknown, strings.Join(names, ", "))
}

// orasFolder finds the only directory; nil if there is none.
func orasFolder(m *Manifest) *ContainerDisk {
	var found *ContainerDisk
	for _, layer := range m.Layers {
		if layer.Annotations[unpackAnnotation] != "true" {
			continue
		}
		if found != nil {
			return nil
		}
		found = &ContainerDisk{
			Layers:    []Stream{{Blobs: []v1.Descriptor{layer}, Compression: Maybe}},
			Path:      strings.TrimPrefix(path.Clean("/"+layer.Annotations[v1.AnnotationTitle]), "/"),
			Directory: true, NamedDisk: true,
		}
	}
	return found
}

// IsDiskName reports whether a file has the name of an uncompressed disk.
func IsDiskName(name string) bool {
	switch strings.ToLower(path.Ext(name)) {
	case ".qcow2", ".img", ".raw":
		return true
	}
	return false
}

func plainDisk(layer v1.Descriptor) (Disk, bool) {
	name := layer.Annotations[v1.AnnotationTitle]
	if name != "" {
		name = path.Base(name)
	}
	d := Disk{Name: name, Streams: []Stream{{Blobs: []v1.Descriptor{layer}}}}
	bare := name
	for _, suffix := range []string{".gz", ".gzip", ".xz", ".zst", ".zstd", ".bz2"} {
		if stem, ok := strings.CutSuffix(name, suffix); ok {
			bare, d.Streams[0].Compression = stem, Sniffed
			break
		}
	}
	base, _ := parameters(layer.MediaType)
	if i := strings.LastIndexByte(base, '+'); i >= 0 {
		base, d.Streams[0].Compression = base[:i], Sniffed
	}
	switch {
	case base == "application/vnd.qemu.qcow2", base == TypeQCOW2, path.Ext(bare) == ".qcow2":
		d.Content = QCOW2
	case path.Ext(bare) == ".raw":
		d.Content = Raw
	case path.Ext(bare) == ".img":
		// Ubuntu's cloud images are qcow2 files with this name.
		d.Content = Detect
	default:
		return Disk{}, false
	}
	if d.Streams[0].Compression == None && d.Content != Raw {
		d.Streams[0].Compression = Unnamed // a raw disk may begin with anything
	}
	if d.Name = bare; d.Name == "" {
		d.Name = "disk.qcow2"
	}
	return d, true
}

// describe summarizes a manifest for error messages.
func describe(m *Manifest) string {
	var parts []string
	if m.ArtifactType != "" {
		parts = append(parts, fmt.Sprintf("artifact type %q", m.ArtifactType))
	}
	for i, l := range m.Layers {
		if i == 8 {
			parts = append(parts, fmt.Sprintf("and %d more", len(m.Layers)-i))
			break
		}
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("layer %q %s", l.MediaType, l.Annotations[v1.AnnotationTitle])))
	}
	if len(parts) == 0 {
		return "it has no layers"
	}
	return strings.Join(parts, ", ")
}
