package export

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/packing"
	"gitlab-sardine-executor/oci/unpack/decompress"
	"gitlab-sardine-executor/oci/unpack/sparse"
)

const (
	// usualChunk is the size of a chunk of a disk of up to usualChunks chunks, in bytes. A
	// new version of an image transfers whole chunks, but each is a request, which costs
	// Debian's docker-registry 3 ms of processor time: as much as half a chunk.
	usualChunk  = 2 << 20
	usualChunks = 4096
)

// chunkSizeFor chooses the size of chunks for a disk.
func chunkSizeFor(size int64) int64 {
	chunk := int64(usualChunk)
	for chunk < format.MaxChunkSize && size/chunk > usualChunks {
		chunk *= 2
	}
	return chunk
}

// addChunkedDisk reads a disk, compresses its chunks in several goroutines, and appends a
// layer for the disk and one for each chunk that is not all zero.
func (e *exporter) addChunkedDisk(ctx context.Context, file packing.File) (err error) {
	content, err := file.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	transfer := e.progress.Start(file.Name, content.Size)
	defer func() { transfer.Done(err) }()
	c := e.chunker(content.Size)
	whole, err := c.survey(ctx, file, content, e.options.Survey, transfer)
	if err == nil && whole == "" {
		hash := digest.Canonical.Digester()
		err = c.run(ctx, io.TeeReader(readers.Counting(content, transfer), hash.Hash()))
		whole = hash.Digest()
	}
	if err != nil {
		return err
	}
	if c.total == 0 {
		return errors.New("it is empty")
	}
	head, err := e.put(ctx, format.TypeDisk, bytes.NewReader(v1.DescriptorEmptyJSON.Data))
	if err != nil {
		return err
	}
	head.Annotations = map[string]string{
		format.DiskName:      file.Name,
		format.DiskContent:   format.ContentNames[file.Kind()],
		format.DiskSize:      strconv.FormatInt(c.total, 10),
		format.DiskDigest:    whole.String(),
		format.DiskChunkSize: strconv.FormatInt(c.size, 10),
		format.DiskChunks:    strconv.Itoa(len(c.chunks)),
	}
	e.layers = append(append(e.layers, head), c.chunks...)
	e.addFile(whole, "zstd "+file.Name)
	return nil
}

// A chunker makes layers of the chunks of one disk.
type chunker struct {
	size    int64 // of a chunk
	total   int64 // of the disk
	level   int
	workers int
	blobs   layout.Contents
	known   map[digest.Digest]v1.Descriptor
	// store stores a chunk that the layout does not have; nil leaves its descriptor without a
	// digest.
	store  func(ctx context.Context, packed []byte) (v1.Descriptor, error)
	chunks []v1.Descriptor
}

// chunker makes layers of a disk of that size.
func (e *exporter) chunker(size int64) *chunker {
	return &chunker{
		size: cmp.Or(e.options.ChunkSize, chunkSizeFor(size)), level: e.options.Level, workers: runtime.GOMAXPROCS(0),
		blobs: e.dest.Contents, known: knownChunks(e.dest.Manifests()),
		store: func(ctx context.Context, packed []byte) (v1.Descriptor, error) {
			return e.put(ctx, format.TypeChunk, bytes.NewReader(packed))
		},
	}
}

// encoders returns one encoder for each worker.
func (c *chunker) encoders() (chan *chunkEncoder, error) {
	free := make(chan *chunkEncoder, c.workers)
	for range c.workers {
		encoder, err := newChunkEncoder(c.level, c.size)
		if err != nil {
			return nil, err
		}
		free <- encoder
	}
	return free, nil
}

func (c *chunker) run(ctx context.Context, r io.Reader) error {
	free, err := c.encoders()
	if err != nil {
		return err
	}
	var slots []*v1.Descriptor
	group, ctx := errgroup.WithContext(ctx)
	for err := error(nil); err == nil; {
		var encoder *chunkEncoder
		select {
		case encoder = <-free:
		case <-ctx.Done():
			return cmp.Or(group.Wait(), context.Cause(ctx)) // which may be the same error
		}
		var n int
		n, err = io.ReadFull(r, encoder.raw)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.Join(err, group.Wait())
		}
		offset, raw := c.total, encoder.raw[:n]
		c.total += int64(n)
		if allZero(raw) {
			free <- encoder
			continue
		}
		slot := new(v1.Descriptor)
		slots = append(slots, slot)
		group.Go(func() (err error) {
			defer func() { free <- encoder }()
			*slot, err = c.put(ctx, encoder, raw, offset)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, slot := range slots {
		c.chunks = append(c.chunks, *slot)
	}
	return nil
}

func (c *chunker) put(ctx context.Context, encoder *chunkEncoder, raw []byte, offset int64) (v1.Descriptor, error) {
	rawDigest := digest.FromBytes(raw)
	desc, ok := c.known[rawDigest]
	if !ok || !c.holds(encoder, desc, raw) {
		desc = v1.Descriptor{}
		if c.store != nil {
			encoder.packed = encoder.zstd.EncodeAll(raw, encoder.packed[:0])
			var err error
			if desc, err = c.store(ctx, encoder.packed); err != nil {
				return v1.Descriptor{}, err
			}
		}
	}
	desc.Annotations = map[string]string{
		format.ChunkOffset: strconv.FormatInt(offset, 10),
		format.ChunkSize:   strconv.Itoa(len(raw)),
		format.ChunkDigest: rawDigest.String(),
	}
	return desc, nil
}

// knownChunks returns the chunk layers of the images in the layout, by the digests of their
// raw content. These are only claims.
func knownChunks(manifests []v1.Manifest) map[digest.Digest]v1.Descriptor {
	known := make(map[digest.Digest]v1.Descriptor)
	for _, m := range manifests {
		for _, layer := range m.Layers {
			if layer.MediaType == format.TypeChunk {
				raw := digest.Digest(layer.Annotations[format.ChunkDigest])
				known[raw] = v1.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size}
			}
		}
	}
	return known
}

// holds reports whether a blob of the layout is raw, compressed. To read it costs a fraction of
// compressing raw.
func (c *chunker) holds(encoder *chunkEncoder, desc v1.Descriptor, raw []byte) bool {
	packed, err := c.blobs.ReadBlob(desc, int64(len(raw)+len(raw)/8+format.ChunkUnit))
	if err != nil {
		return false
	}
	content, err := encoder.reader.DecodeAll(packed, encoder.unpacked[:0])
	if err != nil {
		return false
	}
	encoder.unpacked = content
	return bytes.Equal(content, raw)
}

// A chunkEncoder compresses one chunk at a time.
type chunkEncoder struct {
	zstd     *zstd.Encoder
	reader   *zstd.Decoder
	raw      []byte
	packed   []byte
	unpacked []byte
}

func newChunkEncoder(level int, size int64) (*chunkEncoder, error) {
	speed := zstd.SpeedDefault
	if level != 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	// Readers may refuse larger windows. The digest serves as checksum.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(decompress.ChunkWindow))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(decompress.ChunkWindow),
		zstd.WithDecoderMaxMemory(uint64(max(size, decompress.ChunkWindow))))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &chunkEncoder{zstd: z, reader: r, raw: make([]byte, size)}, nil
}

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), sparse.SparseBlock)
		if !sparse.IsZero(b[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
