package layout

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
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/transport"
)

// A Writer writes into an OCI layout. Only one process writes at a time. Concurrent readers
// find an image complete or not at all, because index.json is replaced last and atomically.
// containers/image's writer does neither, and keeps duplicate entries of a tag.
type Writer struct {
	Contents
	tag  string
	lock *dirlock.Lock // of the directory itself

	mu      sync.Mutex
	written []string // paths of new blobs that no tag refers to yet
	gone    bool     // Discard has removed the directory; another process may have created it again
}

// partialBlobs is a directory in the layout for incomplete blobs.
const partialBlobs = ".partial"

// OpenWriter creates the layout's directory if necessary. It calls waiting once if another
// process is writing there.
func OpenWriter(ctx context.Context, dir, tag string, waiting func()) (_ *Writer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing to the OCI layout %s: %w", dir, err)
		}
	}()
	lock, err := lockDir(ctx, dir, waiting)
	if err != nil {
		return nil, err
	}
	w := &Writer{Contents: Contents{dir}, tag: tag, lock: lock}
	if err := w.prepare(); err != nil {
		return nil, errors.Join(err, w.lock.Unlock())
	}
	return w, nil
}

// lockDir creates the directory if there is none, and locks it. Another process may have
// removed it meanwhile: see [Writer.Discard].
func lockDir(ctx context.Context, dir string, waiting func()) (*dirlock.Lock, error) {
	for {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		lock, err := dirlock.Try(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case lock != nil || err != nil:
			return lock, err
		case waiting != nil:
			waiting()
			waiting = nil
		}
		select {
		case <-time.After(fileutil.LockPoll):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// prepare checks that the directory is a layout or can become one, and removes incomplete
// blobs of killed processes.
func (w *Writer) prepare() error {
	if err := os.MkdirAll(filepath.Join(w.dir, v1.ImageBlobsDir), 0o755); err != nil {
		return err
	}
	if _, err := w.readIndex(); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(w.dir, v1.ImageLayoutFile))
	if err == nil {
		var layout v1.ImageLayout
		if json.Unmarshal(raw, &layout) != nil || layout.Version != v1.ImageLayoutVersion {
			return fmt.Errorf("%w: its %s file is not of version %s", oci.ErrFormat, v1.ImageLayoutFile, v1.ImageLayoutVersion)
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

// Has reads the whole blob, so that a damaged one is written again.
func (w *Writer) Has(ctx context.Context, desc v1.Descriptor) (bool, error) {
	path, err := w.blobPath(desc.Digest)
	if err != nil {
		return false, err
	}
	blob, info, err := fileutil.OpenRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("looking for blob %s: %w", desc.Digest, err)
	}
	defer blob.Close()
	if info.Size() != desc.Size {
		return false, nil
	}
	_, err = io.CopyBuffer(io.Discard, readers.Only(readers.WithContext(ctx, transport.Verify(blob, desc))), make([]byte, readers.BufferSize))
	switch {
	case errors.Is(err, oci.ErrInvalid):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

func (w *Writer) PutBlob(ctx context.Context, desc v1.Descriptor, content io.Reader) error {
	if err := w.writeBlob(ctx, content, func() digest.Digest { return desc.Digest }); err != nil {
		return fmt.Errorf("writing blob %s: %w", desc.Digest, err)
	}
	return nil
}

// AddBlob stores a blob and returns its digest and size. It is safe for concurrent use.
func (w *Writer) AddBlob(ctx context.Context, content io.Reader) (digest.Digest, int64, error) {
	hash := digest.Canonical.Digester()
	counted := readers.NewCounted(io.TeeReader(content, hash.Hash()), 0)
	if err := w.writeBlob(ctx, counted, hash.Digest); err != nil {
		return "", 0, fmt.Errorf("writing blob: %w", err)
	}
	return hash.Digest(), counted.Count(), nil
}

// writeBlob stores content, and calls name for its digest at the end. It replaces an
// existing blob, which may be damaged.
func (w *Writer) writeBlob(ctx context.Context, content io.Reader, name func() digest.Digest) (err error) {
	blob, err := os.CreateTemp(filepath.Join(w.dir, partialBlobs), "blob")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(blob.Name()))
		}
	}()
	_, err = io.CopyBuffer(readers.OnlyWriter(blob), readers.Only(readers.WithContext(ctx, content)), make([]byte, readers.BufferSize))
	if err == nil {
		err = errors.Join(blob.Chmod(0o444), blob.Sync())
	}
	if err = errors.Join(err, blob.Close()); err != nil {
		return err
	}
	path, err := w.blobPath(name())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	w.mu.Lock() // only one of two equal blobs is new
	defer w.mu.Unlock()
	_, was := os.Lstat(path)
	if err := os.Rename(blob.Name(), path); err != nil {
		return err
	}
	if errors.Is(was, fs.ErrNotExist) {
		w.written = append(w.written, path)
	}
	return nil
}

// Discard removes the new blobs that no tag refers to, and the layout if it was created for
// them.
func (w *Writer) Discard() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = true
	failed := []error{os.RemoveAll(filepath.Join(w.dir, partialBlobs))}
	for _, path := range w.written {
		failed = append(failed, os.Remove(path))
	}
	w.written = nil
	// Remove fails on directories that are not empty.
	algorithms, _ := filepath.Glob(filepath.Join(w.dir, v1.ImageBlobsDir, "*"))
	for _, dir := range append(algorithms, filepath.Join(w.dir, v1.ImageBlobsDir), w.dir) {
		_ = os.Remove(dir)
	}
	return errors.Join(failed...)
}

func (w *Writer) PutManifest(_ context.Context, m transport.RawManifest) error {
	path, err := w.blobPath(m.Digest)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing manifest %s: %w", m.Digest, err)
	}
	_, was := os.Lstat(path)
	if err := renameio.WriteFile(path, m.Raw, 0o444); err != nil {
		return fmt.Errorf("writing manifest %s: %w", m.Digest, err)
	}
	if errors.Is(was, fs.ErrNotExist) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.written = append(w.written, path)
	}
	return nil
}

// Stage writes the manifest, so that the image can be read by its digest before it has a tag.
func (w *Writer) Stage(ctx context.Context, top transport.RawManifest) error {
	if err := w.PutManifest(ctx, top); err != nil {
		return err
	}
	path := filepath.Join(w.dir, v1.ImageIndexFile)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	raw, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}})
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, raw, 0o644); err != nil {
		return fmt.Errorf("writing the index of the OCI layout %s: %w", w.dir, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written = append(w.written, path)
	return nil
}

// Commit tags an image. The image that had the tag loses its entry; its blobs stay until
// `umoci gc` removes them.
func (w *Writer) Commit(ctx context.Context, top transport.RawManifest) error {
	if err := w.PutManifest(ctx, top); err != nil {
		return err
	}
	if err := w.syncBlobs(top.Digest); err != nil {
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
		MediaType:   top.MediaType,
		Digest:      top.Digest,
		Size:        int64(len(top.Raw)),
		Annotations: map[string]string{v1.AnnotationRefName: w.tag},
	})
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(filepath.Join(w.dir, v1.ImageIndexFile), raw, 0o644); err != nil {
		return fmt.Errorf("writing the index of the OCI layout %s: %w", w.dir, err)
	}
	w.mu.Lock()
	w.written = nil // the tag refers to them now
	w.mu.Unlock()
	return fileutil.SyncDir(w.dir)
}

// syncBlobs syncs the directories of blobs, before the index refers to them.
func (w *Writer) syncBlobs(d digest.Digest) error {
	blobs := filepath.Join(w.dir, v1.ImageBlobsDir)
	return errors.Join(fileutil.SyncDir(filepath.Join(blobs, d.Algorithm().String())), fileutil.SyncDir(blobs))
}

// Close unlocks the layout.
func (w *Writer) Close() error {
	if w.gone {
		return w.lock.Unlock()
	}
	return errors.Join(os.RemoveAll(filepath.Join(w.dir, partialBlobs)), w.lock.Unlock())
}
