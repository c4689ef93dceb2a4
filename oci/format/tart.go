package format

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	tartConfig     = "application/vnd.cirruslabs.tart.config.v1"
	tartDiskPrefix = "application/vnd.cirruslabs.tart.disk."
	tartDiskV2     = tartDiskPrefix + "v2"
	tartSize       = "org.cirruslabs.tart.uncompressed-size"
	tartDigest     = "org.cirruslabs.tart.uncompressed-content-digest"
	tartFormat     = "org.cirruslabs.tart.disk.format"
)

// isTart plans a Linux machine of tart: consecutive slices of a raw disk, each with a digest.
// Its NVRAM is specific to Apple.
func isTart(i *image) (*Plan, error) {
	if !hasLayer(i.Manifest, tartConfig) {
		return nil, nil
	}
	if i.config.OS == "darwin" {
		return nil, fmt.Errorf("%w: a macOS machine of tart, which only Apple's hypervisor boots", errUnknown)
	}
	for _, marks := range []map[string]string{i.config.Config.Labels, i.Annotations} {
		if f := marks[tartFormat]; f != "" && f != "raw" {
			return nil, fmt.Errorf("%w: a disk of tart in Apple's format %q; want raw", errUnknown, f)
		}
	}
	d := Disk{Name: "disk.img", Content: Raw}
	for _, layer := range i.Layers {
		base, _ := parameters(layer.MediaType)
		if !strings.HasPrefix(base, tartDiskPrefix) {
			continue
		}
		if base != tartDiskV2 {
			return nil, fmt.Errorf("%w: a disk of tart of type %q; want %s: push it again with a newer tart", errUnknown, base, tartDiskV2)
		}
		size, err := annotatedNumber(layer, tartSize)
		if err != nil || size == 0 {
			return nil, fmt.Errorf("%w: a slice of tart's disk (%s): size %d, %w", errUnknown, layer.Digest, size, err)
		}
		raw := digest.Digest(layer.Annotations[tartDigest])
		if err := raw.Validate(); err != nil {
			return nil, fmt.Errorf("%w: a slice of tart's disk (%s): digest %q: %w", errUnknown, layer.Digest, raw, err)
		}
		d.Streams = append(d.Streams, Stream{
			Blobs: []v1.Descriptor{layer}, Compression: AppleLZ4, Offset: d.Size, Size: size, Digest: raw,
		})
		d.Size = saturatingAdd(d.Size, size)
	}
	if len(d.Streams) == 0 {
		return nil, fmt.Errorf("%w: a machine of tart without a disk", errUnknown)
	}
	return &Plan{Format: "tart", Disks: []Disk{d}}, nil
}

const (
	lumePrefix = "application/vnd.trycua."
	lumeOffset = "org.trycua.lume.part.offset"
)

// isLume plans a machine of lume or cua: a disk, or parts of one at offsets.
func isLume(i *image) (*Plan, error) {
	base, _ := parameters(i.Config.MediaType)
	if base != lumePrefix+"lume.config.v1+json" && base != lumePrefix+"qemu.config.v1+json" {
		return nil, nil
	}
	var machine struct {
		OS string `json:"os"`
	}
	_ = json.Unmarshal(i.rawConfig, &machine) // it is optional
	if system := strings.ToLower(machine.OS); system == "macos" || system == "darwin" {
		return nil, fmt.Errorf("%w: a macOS machine of lume, which only Apple's hypervisor boots", errUnknown)
	}
	d := Disk{Name: "disk.img", Content: Detect}
	for _, layer := range i.Layers {
		base, _ := parameters(layer.MediaType)
		if !strings.HasPrefix(base, lumePrefix+"lume.disk.v1") && !strings.HasPrefix(base, lumePrefix+"qemu.disk.v1") {
			continue
		}
		s := Stream{Blobs: []v1.Descriptor{layer}, Compression: Maybe}
		if _, ok := layer.Annotations[lumeOffset]; ok {
			var err error
			if s.Offset, err = annotatedNumber(layer, lumeOffset); err != nil {
				return nil, fmt.Errorf("%w: part %s of lume's disk: %w", errUnknown, layer.Digest, err)
			}
		}
		d.Streams = append(d.Streams, s)
	}
	if len(d.Streams) == 0 {
		return nil, fmt.Errorf("%w: a machine of lume without a disk: %s", errUnknown, describe(i.Manifest))
	}
	slices.SortStableFunc(d.Streams, func(a, b Stream) int { return cmp.Compare(a.Offset, b.Offset) })
	for n := 1; n < len(d.Streams); n++ {
		if d.Streams[n].Offset == d.Streams[n-1].Offset {
			return nil, fmt.Errorf("%w: two parts of lume's disk at offset %d", errUnknown, d.Streams[n].Offset)
		}
	}
	return &Plan{Format: "lume", OS: strings.ToLower(machine.OS), Disks: []Disk{d}}, nil
}
