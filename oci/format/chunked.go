package format

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types, annotations and bounds of the chunked format
// (docs/image-format.md). It differs from the sardinecake format in the disks: an empty layer
// of type TypeDisk describes a disk, and is followed by its chunks.
const (
	Chunked = "chunked"

	TypeDisk  = "application/vnd.sardine.disk.v1+json"
	TypeChunk = "application/vnd.sardine.disk.chunk.v1+zstd"

	// Annotations of a disk. Sizes are decimal, in bytes.
	DiskName      = "vnd.sardine.disk.name"
	DiskContent   = "vnd.sardine.disk.format" // qcow2, raw or iso
	DiskSize      = "vnd.sardine.disk.size"
	DiskDigest    = "vnd.sardine.disk.digest" // of the whole file; optional
	DiskChunkSize = "vnd.sardine.disk.chunk-size"
	DiskChunks    = "vnd.sardine.disk.chunks" // number of chunks that follow

	// Annotations of a chunk: its place in the disk, and the digest of its uncompressed
	// bytes.
	ChunkOffset = "vnd.sardine.chunk.offset"
	ChunkSize   = "vnd.sardine.chunk.size"
	ChunkDigest = "vnd.sardine.chunk.digest"

	// Chunk sizes are multiples of ChunkUnit, so that chunks begin at block boundaries of
	// file systems.
	ChunkUnit = 64 << 10
	// MaxChunkSize is the maximum uncompressed size of a chunk, in bytes.
	MaxChunkSize = 16 << 20
)

// ContentNames are the values of the annotation DiskContent.
var ContentNames = map[Content]string{QCOW2: "qcow2", Raw: "raw", ISO: "iso"}

func chunked(m *Manifest, rawConfig []byte) (*Plan, error) {
	c, err := parseConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	p := &Plan{Format: Chunked, Architecture: c.Architecture, OS: c.OS, Created: c.created()}
	var tables []*chunkTable
	for _, layer := range m.Layers {
		switch base, _ := parameters(layer.MediaType); base {
		case typeDomainXML, typeGuestConfig:
			if err := p.addDescription(base, layer); err != nil {
				return nil, err
			}
		case TypeDisk:
			table, err := newChunkTable(layer)
			if err != nil {
				return nil, err
			}
			tables = append(tables, table)
		case TypeChunk:
			if len(tables) == 0 {
				return nil, fmt.Errorf("%w: chunk %s belongs to no disk", errUnknown, layer.Digest)
			}
			if err := tables[len(tables)-1].add(layer); err != nil {
				return nil, err
			}
		}
	}
	for _, table := range tables {
		if len(table.disk.Streams) != table.chunks {
			return nil, fmt.Errorf("%w: disk %s has %d chunks, its layer says %d", errUnknown, table.disk.Name, len(table.disk.Streams), table.chunks)
		}
		p.Disks = append(p.Disks, table.disk)
	}
	return p, nil
}

// addDescription adds the layer of a domain or a VM config.
func (p *Plan) addDescription(mediaType string, layer v1.Descriptor) error {
	where := &p.DomainXML
	if mediaType == typeGuestConfig {
		where = &p.GuestConfig
	}
	if *where != nil && (*where).Digest != layer.Digest {
		return fmt.Errorf("%w: two layers of type %s", errUnknown, mediaType)
	}
	*where = &layer
	return nil
}

// A chunkTable collects the chunks of a disk.
type chunkTable struct {
	disk      Disk
	chunkSize int64
	chunks    int   // announced
	end       int64 // of the last chunk
}

func newChunkTable(layer v1.Descriptor) (*chunkTable, error) {
	t := &chunkTable{disk: Disk{Name: layer.Annotations[DiskName], Content: -1}}
	if t.disk.Name == "" {
		return nil, fmt.Errorf("%w: a disk without %s", errUnknown, DiskName)
	}
	for content, name := range ContentNames {
		if layer.Annotations[DiskContent] == name {
			t.disk.Content = content
		}
	}
	if t.disk.Content < 0 {
		return nil, fmt.Errorf("%w: disk %s: %s is %q: want qcow2, raw or iso", errUnknown, t.disk.Name, DiskContent, layer.Annotations[DiskContent])
	}
	chunks := int64(0)
	for name, number := range map[string]*int64{DiskSize: &t.disk.Size, DiskChunkSize: &t.chunkSize, DiskChunks: &chunks} {
		var err error
		if *number, err = annotatedNumber(layer, name); err != nil {
			return nil, fmt.Errorf("%w: disk %s: %w", errUnknown, t.disk.Name, err)
		}
	}
	t.chunks = int(min(chunks, maxLayers))
	switch {
	case t.disk.Size == 0:
		return nil, fmt.Errorf("%w: disk %s is empty", errUnknown, t.disk.Name)
	case t.chunkSize == 0 || t.chunkSize%ChunkUnit != 0 || t.chunkSize > MaxChunkSize:
		return nil, fmt.Errorf("%w: disk %s: chunks of %d bytes: want a multiple of %d, at most %d", errUnknown, t.disk.Name, t.chunkSize, ChunkUnit, MaxChunkSize)
	}
	if d := digest.Digest(layer.Annotations[DiskDigest]); d != "" {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w: disk %s: digest %q: %w", errUnknown, t.disk.Name, d, err)
		}
		t.disk.Digest = d
	}
	return t, nil
}

// add appends a chunk. Chunks are in ascending order; gaps are zero.
func (t *chunkTable) add(layer v1.Descriptor) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: disk %s, chunk %s: %s", errUnknown, t.disk.Name, layer.Digest, fmt.Sprintf(format, args...))
	}
	offset, err := annotatedNumber(layer, ChunkOffset)
	if err != nil {
		return fail("%v", err)
	}
	size, err := annotatedNumber(layer, ChunkSize)
	if err != nil {
		return fail("%v", err)
	}
	raw := digest.Digest(layer.Annotations[ChunkDigest])
	if err := raw.Validate(); err != nil {
		return fail("digest %q: %v", raw, err)
	}
	switch {
	case offset%t.chunkSize != 0:
		return fail("offset %d is not a multiple of %d", offset, t.chunkSize)
	case offset < t.end:
		return fail("offset %d lies before %d, where the chunk before it ends", offset, t.end)
	case offset >= t.disk.Size:
		return fail("offset %d lies beyond the end of the disk, %d", offset, t.disk.Size)
	case size != min(t.chunkSize, t.disk.Size-offset):
		return fail("size %d, want %d", size, min(t.chunkSize, t.disk.Size-offset))
	case layer.Size > size+size/8+ChunkUnit:
		return fail("%d bytes to say %d", layer.Size, size)
	case len(t.disk.Streams) == t.chunks:
		return fail("is one more than the %d that the disk has", t.chunks)
	}
	t.end = offset + size
	t.disk.Streams = append(t.disk.Streams, Stream{
		Blobs: []v1.Descriptor{layer}, Compression: Zstd, Offset: offset, Size: size, Digest: raw,
	})
	return nil
}

// annotatedNumber reads a non-negative number from an annotation.
func annotatedNumber(layer v1.Descriptor, name string) (int64, error) {
	text, ok := layer.Annotations[name]
	if !ok {
		return 0, fmt.Errorf("no annotation %s", name)
	}
	n, err := strconv.ParseUint(text, 10, 62)
	if err != nil {
		return 0, fmt.Errorf("annotation %s is %q: want a number", name, text)
	}
	return int64(n), nil
}
