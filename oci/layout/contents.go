package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/transport"
)

// Contents are the images and blobs of a layout. They can be read while another process writes:
// what is there is complete.
type Contents struct{ dir string }

// ContentsOf returns the contents of a layout, which need not exist yet.
func ContentsOf(dir string) Contents { return Contents{dir} }

// Manifests returns the images in the layout, as far as they can be read.
func (c Contents) Manifests() []v1.Manifest {
	index, err := c.readIndex()
	if err != nil {
		return nil
	}
	var found []v1.Manifest
	for _, desc := range index.Manifests {
		raw, err := c.ReadBlob(desc, transport.MaxManifest)
		var m v1.Manifest
		if err == nil && json.Unmarshal(raw, &m) == nil {
			found = append(found, m)
		}
	}
	return found
}

// ReadBlob reads a blob of up to limit bytes, and verifies it.
func (c Contents) ReadBlob(desc v1.Descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s has %d bytes", oci.ErrInvalid, desc.Digest, desc.Size)
	}
	path, err := c.blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	blob, _, err := fileutil.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(transport.Verify(blob, desc))
}

// HasSize reports whether there is a blob of that size. It does not read it.
func (c Contents) HasSize(desc v1.Descriptor) bool {
	path, err := c.blobPath(desc.Digest)
	if err != nil {
		return false
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular() && info.Size() == desc.Size
}

// readIndex reads index.json. A new layout has an empty index.
func (c Contents) readIndex() (*v1.Index, error) {
	index := &v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	raw, err := os.ReadFile(filepath.Join(c.dir, v1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, index); err != nil {
		return nil, fmt.Errorf("%w: its %s: %w", oci.ErrFormat, v1.ImageIndexFile, err)
	}
	return index, nil
}

func (c Contents) blobPath(d digest.Digest) (string, error) {
	name, err := blobPath(d)
	return filepath.Join(c.dir, name), err
}
