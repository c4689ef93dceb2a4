package export

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/packing"
)

// A Survey is what an export would find out about disk files that do not change until then, such
// as the base of a build: their digests, and which of their chunks the layout has. A nil Survey
// knows nothing.
type Survey struct {
	files map[string]surveyed // by absolute path
}

// A surveyed file is one without a backing file: its content does not depend on the names in the
// image.
type surveyed struct {
	size, chunkSize int64
	digest          digest.Digest
	// chunks are the layers of the file; without a digest those that the layout does not have.
	chunks []v1.Descriptor
}

// TakeSurvey reads the disks and their backing files as Export with these options would in the
// chunked format. It needs no lock of the layout, writes nothing, and leaves processors to others.
func TakeSurvey(ctx context.Context, to oci.Reference, o Options) (*Survey, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("read the disks: %w", err)
	}
	files, err := packing.List(o.Disks, packing.OpenTrusted)
	if err != nil {
		return nil, fmt.Errorf("read the disks: %w", err)
	}
	contents := layout.ContentsOf(to.LayoutDir())
	known := knownChunks(contents.Manifests())
	s := &Survey{files: make(map[string]surveyed)}
	for _, file := range files {
		if file.Backing != nil {
			continue
		}
		c := &chunker{size: o.ChunkSize, level: o.Level, workers: 1, blobs: contents, known: known}
		if s.files[file.Path], err = c.look(ctx, file); err != nil {
			return nil, fmt.Errorf("read the disk %s: %w", file.Path, err)
		}
	}
	return s, nil
}

// look reads a file.
func (c *chunker) look(ctx context.Context, file packing.File) (surveyed, error) {
	content, err := file.Open()
	if err != nil {
		return surveyed{}, err
	}
	defer content.Close()
	if c.size == 0 {
		c.size = chunkSizeFor(content.Size)
	}
	hash := digest.Canonical.Digester()
	if err := c.run(ctx, io.TeeReader(readers.WithContext(ctx, content), hash.Hash())); err != nil {
		return surveyed{}, err
	}
	return surveyed{size: c.total, chunkSize: c.size, digest: hash.Digest(), chunks: c.chunks}, nil
}

// survey makes layers of a disk that was surveyed, and returns its digest; empty if there is no
// survey of it. It reads only the chunks that the layout lacks.
func (c *chunker) survey(ctx context.Context, file packing.File, content *packing.Content, s *Survey, transfer oci.Transfer) (digest.Digest, error) {
	if s == nil {
		return "", nil
	}
	found, ok := s.files[file.Path]
	r, seekable := content.Reader.(io.ReaderAt)
	if !ok || !seekable || found.chunkSize != c.size || found.size != content.Size {
		return "", nil
	}
	free, err := c.encoders()
	if err != nil {
		return "", err
	}
	c.total, c.chunks = found.size, slices.Clone(found.chunks)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.workers)
	for i := range c.chunks {
		if c.chunks[i].Digest != "" && c.blobs.HasSize(c.chunks[i]) {
			continue
		}
		group.Go(func() (err error) {
			encoder := <-free
			defer func() { free <- encoder }()
			c.chunks[i], err = c.again(ctx, encoder, r, c.chunks[i].Annotations)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	transfer.Add(content.Size)
	return found.digest, nil
}

// again makes a layer of a chunk that was surveyed.
func (c *chunker) again(ctx context.Context, encoder *chunkEncoder, r io.ReaderAt, annotations map[string]string) (v1.Descriptor, error) {
	if err := ctx.Err(); err != nil {
		return v1.Descriptor{}, context.Cause(ctx)
	}
	offset, err := strconv.ParseInt(annotations[format.ChunkOffset], 10, 64)
	if err != nil {
		return v1.Descriptor{}, err
	}
	raw := encoder.raw[:min(c.size, c.total-offset)]
	if _, err := io.ReadFull(io.NewSectionReader(r, offset, int64(len(raw))), raw); err != nil {
		return v1.Descriptor{}, err
	}
	desc, err := c.put(ctx, encoder, raw, offset)
	if err == nil && desc.Annotations[format.ChunkDigest] != annotations[format.ChunkDigest] {
		err = fmt.Errorf("%w: it has changed at %d", oci.ErrInvalid, offset)
	}
	return desc, err
}
