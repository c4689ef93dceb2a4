// Package format recognises the ways in which people keep virtual machines in
// registries. It reads manifests and makes plans; it opens nothing.
package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"mime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrUnknown: the manifest is not a virtual machine image that we know, or one
// that breaks the rules of its format. The text says what was found.
var ErrUnknown = errors.New("unknown format")

// A Plan says how to turn the blobs of one image into disks.
type Plan struct {
	// Format is the name of the format, such as "sardinecake".
	Format string
	// Architecture and OS as the image names them; may be empty.
	Architecture string
	OS           string
	Created      time.Time
	// DomainXML and GuestConfig are the blobs that hold them; nil if there are none.
	DomainXML   *v1.Descriptor
	GuestConfig *v1.Descriptor
	Disks       []Disk
}

// A Disk is one file to be made: streams of bytes at offsets. What no stream
// covers is zero.
type Disk struct {
	// Name of the file as the manifest gives it. Empty: the gzip header of the
	// first stream holds it, or the tree.
	Name string
	// Alias is the name by which other disks of the image call this one as their
	// backing file; empty if that is its name.
	Alias string
	// Content is what the file must be.
	Content Content
	Streams []Stream
	// Tree is where the file lies, for a disk without streams; nil if it has some.
	Tree *Tree
	// Digest of the finished file; empty if the image does not say.
	Digest digest.Digest
	// Size of the finished file in bytes; 0 if the image does not say.
	Size int64
}

// A Stream is decompressed as one, after its blobs were put together in order.
type Stream struct {
	Blobs       []v1.Descriptor
	Compression Compression
	// Offset in the disk at which the stream begins.
	Offset int64
	// Size of the decompressed stream in bytes; 0 if the image does not say.
	Size int64
	// Digest of the decompressed stream; empty if the image does not say.
	Digest digest.Digest
}

// A Tree is the file system of a container image, of which one file is a disk.
type Tree struct {
	// Layers are tar archives, from the lowest to the topmost.
	Layers []Stream
	// Path of the disk, or of the directory in which it is the only file; without a
	// slash at the beginning.
	Path string
	// Directory tells which of the two.
	Directory bool
}

// Content says what a disk file holds.
type Content int

const (
	// Detect: qcow2 if the file begins with its magic bytes, else raw.
	Detect Content = iota
	QCOW2
	Raw
	ISO
)

// Compression of a stream.
type Compression int

const (
	None Compression = iota
	// Gzip, Zstd and AppleLZ4 are always compressed.
	Gzip
	Zstd
	// AppleLZ4 is the stream of Apple's compression library: LZ4 blocks in a framing
	// of its own.
	AppleLZ4
	// Maybe is gzip, xz or zstd by its first bytes, or not compressed.
	Maybe
	// Sniffed is gzip, xz or zstd by its first bytes, or a plain qcow2: there are
	// images whose disk.qcow2.gz is not compressed.
	Sniffed
)

// Manifest is an OCI image manifest or a Docker one (schema 2), read leniently:
// only what a [Plan] needs.
type Manifest struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       v1.Descriptor     `json:"config"`
	Layers       []v1.Descriptor   `json:"layers"`
	Annotations  map[string]string `json:"annotations"`

	// DiskType is what the index said of this manifest; empty if it was silent.
	DiskType string `json:"-"`
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// maxLayers bounds the work that one manifest can ask for. An image of 1 TiB in
// chunks of 16 MiB has 65536.
const maxLayers = 100_000

// ParseManifest reads a manifest of the given media type (which may be empty)
// and checks its descriptors: every digest valid, no size negative.
func ParseManifest(raw []byte, mediaType string) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: the manifest is not valid JSON: %w", ErrUnknown, err)
	}
	if m.MediaType != "" {
		mediaType = m.MediaType
	}
	switch base, _ := parameters(mediaType); base {
	case v1.MediaTypeImageManifest, dockerManifest, "":
	default:
		return nil, fmt.Errorf("%w: a manifest of type %q", ErrUnknown, mediaType)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: %d layers, at most %d are accepted", ErrUnknown, len(m.Layers), maxLayers)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%w: digest %q: %w", ErrUnknown, d.Digest, err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("%w: blob %s has size %d", ErrUnknown, d.Digest, d.Size)
		}
	}
	return &m, nil
}

// IsIndex reports whether a media type is that of an index of manifests.
func IsIndex(mediaType string) bool {
	base, _ := parameters(mediaType)
	return base == v1.MediaTypeImageIndex || base == dockerIndex
}

func hasLayer(m *Manifest, mediaType string) bool {
	for _, l := range m.Layers {
		if l.MediaType == mediaType {
			return true
		}
	}
	return false
}

// config is an image config, read leniently: the Python tool writes the times
// of its history as JSON numbers, which v1.Image refuses.
type config struct {
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Created      json.RawMessage `json:"created"`
	RootFS       struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
	Config struct {
		Labels map[string]string `json:"Labels"`
	} `json:"config"`
}

func parseConfig(raw []byte) (config, error) {
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return config{}, fmt.Errorf("%w: the image config is not valid JSON: %w", ErrUnknown, err)
	}
	return c, nil
}

// created is zero if the config has no time, or one that cannot be read: no
// image is refused for that.
func (c config) created() time.Time {
	var t time.Time
	if json.Unmarshal(c.Created, &t) == nil {
		return t
	}
	var seconds float64
	if json.Unmarshal(c.Created, &seconds) == nil && seconds > 0 && seconds < 1<<33 {
		return time.UnixMicro(int64(seconds * 1e6)).UTC()
	}
	return time.Time{}
}

// parameters splits a media type; what cannot be read as one is its own base.
func parameters(mediaType string) (string, map[string]string) {
	base, params, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return mediaType, nil
	}
	return base, params
}

// TransferSize is the number of bytes of all disks' blobs.
func (p *Plan) TransferSize() int64 {
	var sum int64
	for _, disk := range p.Disks {
		streams := disk.Streams
		if disk.Tree != nil {
			streams = disk.Tree.Layers
		}
		for _, stream := range streams {
			for _, blob := range stream.Blobs {
				sum = saturatingAdd(sum, blob.Size)
			}
		}
	}
	return sum
}

// UnpackedSize is the number of bytes of all streams; 0 if the image does not say.
func (p *Plan) UnpackedSize() int64 {
	var sum int64
	for _, disk := range p.Disks {
		if disk.Tree != nil {
			return 0
		}
		for _, stream := range disk.Streams {
			if stream.Size == 0 {
				return 0
			}
			sum = saturatingAdd(sum, stream.Size)
		}
	}
	return sum
}

// saturatingAdd adds sizes, which are not negative, of a stranger's choice.
func saturatingAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// IsStream reports whether the disk is one stream from its beginning to its end.
func (d Disk) IsStream() bool {
	return len(d.Streams) == 1 && d.Streams[0].Offset == 0 && d.Streams[0].Size == 0 && d.Streams[0].Digest == ""
}
