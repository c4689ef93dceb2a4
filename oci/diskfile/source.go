package diskfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/internal/qcow2"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/transport"
)

// Identify returns what changes if the content of a disk file changes: device, inode, size and
// times, but not the content.
func Identify(path string) (string, error) {
	f, err := open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return identify(f)
}

func identify(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("looking at the disk %s: %w", f.Name(), err)
	}
	return fmt.Sprintf("%d:%d size %d modified %d.%09d changed %d.%09d", st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// A source is an image with one disk, as `oras push` would make it. Equal files are one image.
type source struct {
	file     *os.File
	size     int64
	layer    v1.Descriptor
	manifest []byte
}

var emptyConfig = v1.DescriptorEmptyJSON

// Open reads the file at an absolute path once, for its digest. The file must not change before
// the image is closed: it would not match its digest.
func Open(ctx context.Context, path string) (transport.Source, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	s := &source{file: f}
	if err := s.describe(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

func (s *source) describe(ctx context.Context) error {
	info, err := s.file.Stat()
	if err != nil {
		return fmt.Errorf("looking at the disk: %w", err)
	}
	s.size = info.Size()
	head := make([]byte, len(qcow2.Magic))
	if _, err := s.file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the disk: %w", err)
	}
	mediaType, title := format.TypeRaw, "disk.raw"
	if qcow2.IsQCOW2(head) {
		mediaType, title = format.TypeQCOW2, "disk.qcow2"
	}
	hash := digest.Canonical.Digester()
	content := &cancelled{ctx, io.NewSectionReader(s.file, 0, s.size)}
	if n, err := io.CopyBuffer(hash.Hash(), content, make([]byte, 1<<20)); err != nil {
		return fmt.Errorf("reading the disk: %w", err)
	} else if n != s.size {
		return fmt.Errorf("%w: the disk %s became smaller while it was read", oci.ErrInvalid, s.file.Name())
	}
	s.layer = v1.Descriptor{MediaType: mediaType, Digest: hash.Digest(), Size: s.size, Annotations: map[string]string{v1.AnnotationTitle: title}}
	s.manifest, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: emptyConfig, Layers: []v1.Descriptor{s.layer},
	})
	return err
}

// A cancelled reader fails when its context ends.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (s *source) Manifest(_ context.Context, d digest.Digest) ([]byte, string, error) {
	if d != "" && d != digest.FromBytes(s.manifest) {
		return nil, "", fmt.Errorf("%w: %s is not the disk %s", oci.ErrNotFound, d, s.file.Name())
	}
	return s.manifest, v1.MediaTypeImageManifest, nil
}

func (s *source) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	switch desc.Digest {
	case emptyConfig.Digest:
		return io.NopCloser(&cancelled{ctx, bytes.NewReader(emptyConfig.Data)}), nil
	case s.layer.Digest:
		return io.NopCloser(&cancelled{ctx, io.NewSectionReader(s.file, 0, s.size)}), nil
	}
	return nil, fmt.Errorf("%w: blob %s is not the disk %s", oci.ErrNotFound, desc.Digest, s.file.Name())
}

func (s *source) Close() error { return s.file.Close() }
