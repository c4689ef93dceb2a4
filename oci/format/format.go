// Package format recognizes formats of virtual machine images in registries. It turns a
// manifest into a plan, and reads no layers.
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

	"gitlab-sardine-executor/internal/strictjson"
)

// errUnknown: the manifest is not of a known virtual machine image, or violates its format.
// The text says what was found.
var errUnknown = errors.New("unknown format")

// A Plan says how to turn the blobs of one image into disks.
type Plan struct {
	// Format is the name of the format, such as "sardinecake".
	Format string
	// Architecture and OS, as named by the image; may be empty.
	Architecture string
	OS           string
	Created      time.Time
	// DomainXML and GuestConfig are their blobs; nil if the image has none.
	DomainXML   *v1.Descriptor
	GuestConfig *v1.Descriptor
	Disks       []Disk
}

// A Disk is a file to write: streams at offsets, and zeroes in between.
type Disk struct {
	// Name of the file in the manifest. If it is empty, the gzip header of the first stream
	// or the container disk has it.
	Name string
	// Alias is the name by which other disks refer to this one as their backing file; empty
	// if they use Name.
	Alias string
	// Content is the required content of the file.
	Content Content
	Streams []Stream
	// ContainerDisk is where the file is; nil for a disk with streams.
	ContainerDisk *ContainerDisk
	// Digest of the finished file; empty if the image does not say.
	Digest digest.Digest
	// Size of the finished file in bytes; 0 if the image does not say.
	Size int64
}

// A Stream is a sequence of blobs that are decompressed as one.
type Stream struct {
	Blobs       []v1.Descriptor
	Compression Compression
	// Offset in the disk.
	Offset int64
	// Size of the decompressed stream in bytes; 0 if the image does not say.
	Size int64
	// Digest of the decompressed stream; empty if the image does not say.
	Digest digest.Digest
}

// A ContainerDisk is a disk file in the layers of a container image.
type ContainerDisk struct {
	// Layers are tar archives, from the lowest to the top.
	Layers []Stream
	// Path of the disk, or of the directory that contains it as the only file; without a
	// leading slash.
	Path string
	// Directory says which of the two.
	Directory bool
	// NamedDisk: other files in the directory do not count. The disk is the one with the name
	// of a disk ([IsDiskName]).
	NamedDisk bool
}

// Content is the format of a disk file.
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
	// AppleLZ4 is LZ4 in the framing of Apple's compression library.
	AppleLZ4
	// Maybe is gzip, xz, zstd or bzip2 by its first bytes, or not compressed.
	Maybe
	// Sniffed is gzip, xz, zstd or bzip2 by its first bytes, or an uncompressed disk (qcow2, or
	// with a boot sector or partition table): in some images, disk.qcow2.gz is not compressed.
	Sniffed
	// Unnamed is as Maybe, for files with names that say nothing of compression: in some
	// images, disk.qcow2 is compressed.
	Unnamed
)

func hasLayer(m *Manifest, mediaType string) bool {
	for _, l := range m.Layers {
		if l.MediaType == mediaType {
			return true
		}
	}
	return false
}

// config is an image config. v1.Image would refuse those of the Python tool, which have times
// as JSON numbers.
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

// configNames are the known names in configs.
var configNames = strictjson.Known(map[string]*strictjson.Names{
	"architecture": nil, "os": nil, "created": nil,
	"rootfs": strictjson.Known(map[string]*strictjson.Names{"diff_ids": nil}), "config": strictjson.Known(map[string]*strictjson.Names{"Labels": nil}),
})

func parseConfig(raw []byte) (config, error) {
	var c config
	if err := checkJSON(raw, configNames); err != nil {
		return config{}, fmt.Errorf("the image config: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return config{}, fmt.Errorf("%w: the image config is not valid JSON: %w", errUnknown, err)
	}
	return c, nil
}

// created returns the creation time; zero if it is missing or invalid.
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

// parameters splits a media type. It returns invalid ones unchanged.
func parameters(mediaType string) (string, map[string]string) {
	base, params, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return mediaType, nil
	}
	return base, params
}

// TransferSize returns the size of all blobs of the disks, in bytes.
func (p *Plan) TransferSize() int64 {
	var sum int64
	for _, disk := range p.Disks {
		streams := disk.Streams
		if disk.ContainerDisk != nil {
			streams = disk.ContainerDisk.Layers
		}
		for _, stream := range streams {
			for _, blob := range stream.Blobs {
				sum = saturatingAdd(sum, blob.Size)
			}
		}
	}
	return sum
}

// UnpackedSize returns the size of all streams, in bytes; 0 if the image does not say.
func (p *Plan) UnpackedSize() int64 {
	var sum int64
	for _, disk := range p.Disks {
		if disk.ContainerDisk != nil {
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

// saturatingAdd adds untrusted sizes, which are not negative.
func saturatingAdd(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// IsStream reports whether the disk is one stream from beginning to end.
func (d Disk) IsStream() bool {
	return len(d.Streams) == 1 && d.Streams[0].Offset == 0 && d.Streams[0].Size == 0 && d.Streams[0].Digest == ""
}
