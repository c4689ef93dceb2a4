package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutWriter writes into an OCI layout. One process writes at a time; those who
// read meanwhile find each image complete or not at all, for index.json, which
// names them, is replaced last and as a whole.
//
// containers/image's own writer does none of that, and leaves a second entry
// where another tool left two with one tag.
type layoutWriter struct {
	dir  string
	tag  string
	lock *flock.Flock // of the directory itself

	mu      sync.Mutex
	written []string // paths of the blobs that were not there before
}

// partialBlobs is the directory, in the layout's own, for blobs in the making.
const partialBlobs = ".partial"

// openLayoutWriter makes the layout's directory if there is none. waiting is
// called once if another process writes there now.
func openLayoutWriter(ctx context.Context, dir, tag string, waiting func()) (_ *layoutWriter, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing to the OCI layout %s: %w", dir, err)
		}
	}()
	if err := os.MkdirAll(filepath.Join(dir, v1.ImageBlobsDir), 0o755); err != nil {
		return nil, err
	}
	w := &layoutWriter{dir: dir, tag: tag, lock: flock.New(dir, flock.SetFlag(os.O_RDONLY))}
	locked, err := w.lock.TryLock()
	if err == nil && !locked {
		waiting()
		_, err = w.lock.TryLockContext(ctx, lockPoll)
	}
	if err != nil {
		return nil, err
	}
	if err := w.prepare(); err != nil {
		return nil, errors.Join(err, w.lock.Close())
	}
	return w, nil
}

// prepare checks that the directory is a layout, or can become one, before
// anything large is written, and removes what a killed process left.
func (w *layoutWriter) prepare() error {
	if _, err := w.readIndex(); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(w.dir, v1.ImageLayoutFile))
	if err == nil {
		var layout v1.ImageLayout
		if json.Unmarshal(raw, &layout) != nil || layout.Version != v1.ImageLayoutVersion {
			return fmt.Errorf("%w: its %s file is not of version %s", ErrFormat, v1.ImageLayoutFile, v1.ImageLayoutVersion)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	partial := filepath.Join(w.dir, partialBlobs)
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	return os.Mkdir(partial, 0o755)
}

// Has reads a blob to the end: what another tool or a bad disk left there under
// this name would otherwise be handed on.
func (w *layoutWriter) Has(ctx context.Context, desc v1.Descriptor) (bool, error) {
	path, err := w.blobPath(desc.Digest)
	if err != nil {
		return false, err
	}
	blob, info, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("looking for blob %s: %w", desc.Digest, err)
	}
	defer blob.Close()
	if info.Size() != desc.Size {
		return false, nil
	}
	_, err = io.CopyBuffer(io.Discard, onlyReader{contextReader{ctx, verify(blob, desc)}}, make([]byte, copyBuffer))
	switch {
	case errors.Is(err, ErrHostile):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

func (w *layoutWriter) PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error {
	path, err := w.blobPath(desc.Digest)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	blob, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Join(w.dir, partialBlobs)), renameio.WithPermissions(0o444))
	if err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	defer blob.Cleanup()
	if _, err := io.CopyBuffer(onlyWriter{blob}, onlyReader{contextReader{ctx, content}}, make([]byte, copyBuffer)); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	if err := blob.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written = append(w.written, path)
	return nil
}

// Discard removes what was written, which no tag leads to yet, and the layout if it
// was made for it.
func (w *layoutWriter) Discard() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	failed := []error{os.RemoveAll(filepath.Join(w.dir, partialBlobs))}
	for _, path := range w.written {
		failed = append(failed, os.Remove(path))
	}
	w.written = nil
	// None of them goes unless it is empty.
	algorithms, _ := filepath.Glob(filepath.Join(w.dir, v1.ImageBlobsDir, "*"))
	for _, dir := range append(algorithms, filepath.Join(w.dir, v1.ImageBlobsDir), w.dir) {
		_ = os.Remove(dir)
	}
	return errors.Join(failed...)
}

func (w *layoutWriter) PutManifest(_ context.Context, m rawManifest) error {
	path, err := w.blobPath(m.digest)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing manifest %s: %w", m.digest, err)
	}
	if err := renameio.WriteFile(path, m.raw, 0o444); err != nil {
		return fmt.Errorf("writing manifest %s: %w", m.digest, err)
	}
	return nil
}

// Commit gives the tag to an image. The one that had it keeps its blobs, but no
// entry; `umoci gc` frees them.
func (w *layoutWriter) Commit(ctx context.Context, top rawManifest) error {
	if err := w.PutManifest(ctx, top); err != nil {
		return err
	}
	if err := w.syncBlobs(top.digest); err != nil {
		return err
	}
	version, err := json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(w.dir, v1.ImageLayoutFile), version, 0o644); err != nil {
		return fmt.Errorf("writing the OCI layout %s: %w", w.dir, err)
	}
	index, err := w.readIndex()
	if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(desc v1.Descriptor) bool {
		return desc.Annotations[v1.AnnotationRefName] == w.tag
	})
	index.Manifests = append(index.Manifests, v1.Descriptor{
		MediaType:   top.mediaType,
		Digest:      top.digest,
		Size:        int64(len(top.raw)),
		Annotations: map[string]string{v1.AnnotationRefName: w.tag},
	})
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(w.dir, v1.ImageIndexFile), raw, 0o644); err != nil {
		return fmt.Errorf("writing the index of the OCI layout %s: %w", w.dir, err)
	}
	return syncDir(w.dir)
}

// syncBlobs makes the names of the blobs last as long as the index that leads to
// them.
func (w *layoutWriter) syncBlobs(d digest.Digest) error {
	blobs := filepath.Join(w.dir, v1.ImageBlobsDir)
	return errors.Join(syncDir(filepath.Join(blobs, d.Algorithm().String())), syncDir(blobs))
}

// readIndex reads index.json; that of a layout to be is empty.
func (w *layoutWriter) readIndex() (*v1.Index, error) {
	index := &v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	raw, err := os.ReadFile(filepath.Join(w.dir, v1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, index); err != nil {
		return nil, fmt.Errorf("%w: its %s: %w", ErrFormat, v1.ImageIndexFile, err)
	}
	return index, nil
}

func (w *layoutWriter) blobPath(d digest.Digest) (string, error) {
	name, err := blobPath(d)
	return filepath.Join(w.dir, name), err
}

// Close lets others write.
func (w *layoutWriter) Close() error {
	return errors.Join(os.RemoveAll(filepath.Join(w.dir, partialBlobs)), w.lock.Close())
}

// onlyWriter hides what else a file can do: io.CopyBuffer would let it read from
// the source with a buffer of its own.
type onlyWriter struct{ io.Writer }
