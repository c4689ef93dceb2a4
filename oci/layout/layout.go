package layout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/transport"
)

// layoutSource reads an OCI layout. Unlike containers/image, it uses the last of several
// entries with the same tag: some tools append an entry at each export. It opens only
// regular files, and none outside the layout's directory.
type layoutSource struct {
	ref  oci.Reference
	root *os.Root
	desc v1.Descriptor // of the manifest that the reference names
}

func Open(ref oci.Reference) (transport.Source, error) {
	root, err := os.OpenRoot(ref.LayoutDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no OCI layout at %s", oci.ErrNotFound, ref.LayoutDir())
	} else if err != nil {
		return nil, fmt.Errorf("opening OCI layout: %w", err)
	}
	s := &layoutSource{ref: ref, root: root}
	if s.desc, err = s.find(); err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

// find returns the entry of index.json that the reference names.
func (s *layoutSource) find() (v1.Descriptor, error) {
	raw, err := s.readFile(v1.ImageIndexFile)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("%s: %w", s.ref, err)
	}
	doc, err := format.Parse(raw, format.Claim{By: "an OCI layout's " + v1.ImageIndexFile, MediaType: v1.MediaTypeImageIndex})
	if err != nil {
		return v1.Descriptor{}, transport.FormatError(fmt.Errorf("%s: %s: %w", s.ref, v1.ImageIndexFile, err))
	}
	index := doc.Index
	if s.ref.Digest() != "" {
		for _, desc := range index.Manifests {
			if desc.Digest == s.ref.Digest() {
				return desc, nil
			}
		}
		// It may be a child of an index.
		return v1.Descriptor{Digest: s.ref.Digest()}, nil
	}
	var tags []string
	for i := len(index.Manifests) - 1; i >= 0; i-- {
		tag := index.Manifests[i].Annotations[v1.AnnotationRefName]
		if s.ref.Tag() != "" && tag == s.ref.Tag() || s.ref.Tag() == "" && len(index.Manifests) == 1 {
			return index.Manifests[i], nil
		}
		tags = append(tags, fmt.Sprintf("%q", tag))
	}
	if s.ref.Tag() == "" && len(index.Manifests) > 1 {
		return v1.Descriptor{}, fmt.Errorf("%w: %s holds several images, select one by its tag: %s", oci.ErrReference, s.ref, strings.Join(tags, ", "))
	}
	return v1.Descriptor{}, fmt.Errorf("%w: %s: the layout has the tags [%s]", oci.ErrNotFound, s.ref, strings.Join(tags, ", "))
}

func (s *layoutSource) Manifest(_ context.Context, d digest.Digest) ([]byte, string, error) {
	mediaType := ""
	if d == "" || d == s.desc.Digest {
		d, mediaType = s.desc.Digest, s.desc.MediaType
	}
	name, err := blobPath(d)
	if err != nil {
		return nil, "", err
	}
	raw, err := s.readFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("%s: manifest %s: %w", s.ref, d, err)
	}
	// index.json has the digest of the top manifest, too: check it.
	if got := d.Algorithm().FromBytes(raw); got != d {
		return nil, "", fmt.Errorf("%w: %s: manifest %s has digest %s", oci.ErrInvalid, s.ref, d, got)
	}
	if size := s.desc.Size; d == s.desc.Digest && size != 0 && size != int64(len(raw)) {
		return nil, "", fmt.Errorf("%w: %s: manifest %s has %d bytes, %s says %d", oci.ErrInvalid, s.ref, d, len(raw), v1.ImageIndexFile, size)
	}
	return raw, mediaType, nil
}

func (s *layoutSource) Blob(_ context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	name, err := blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := s.open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.ref, err)
	}
	return f, nil
}

func (s *layoutSource) Close() error { return s.root.Close() }

func (s *layoutSource) readFile(name string) ([]byte, error) {
	f, err := s.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, transport.MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > transport.MaxManifest {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", oci.ErrInvalid, name, transport.MaxManifest)
	}
	return raw, nil
}

// open opens a regular file. Without O_NONBLOCK, opening a FIFO would block forever.
func (s *layoutSource) open(name string) (*os.File, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the layout has no %s", oci.ErrNotFound, name)
	} else if err != nil {
		return nil, fmt.Errorf("reading OCI layout: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("reading OCI layout: %w", err)
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%w: %s in the layout is not a regular file", oci.ErrInvalid, name)
	}
	return f, nil
}

func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("%w: digest %q: %w", oci.ErrInvalid, d, err)
	}
	return path.Join(v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

func (s *layoutSource) BlobAt(ctx context.Context, desc v1.Descriptor, offset int64) (io.ReadCloser, error) {
	blob, err := s.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	seeker, ok := blob.(io.Seeker)
	if !ok {
		return nil, errors.Join(transport.ErrNoRange, blob.Close())
	}
	if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("reading OCI layout: %w", err), blob.Close())
	}
	return blob, nil
}
