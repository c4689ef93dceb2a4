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
	ContainerDisk *ContainerDisk
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

// A ContainerDisk is the file system of a container image, of which one file is a disk.
type ContainerDisk struct {
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

// configNames are the names that are read in configs.
var configNames = knownNames(map[string]*names{
	"architecture": nil, "os": nil, "created": nil,
	"rootfs": knownNames(map[string]*names{"diff_ids": nil}), "config": knownNames(map[string]*names{"Labels": nil}),
})

func parseConfig(raw []byte) (config, error) {
	var c config
	if err := checkJSON(raw, configNames); err != nil {
		return config{}, fmt.Errorf("the image config: %w", err)
	}
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

// UnpackedSize is the number of bytes of all streams; 0 if the image does not say.
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
