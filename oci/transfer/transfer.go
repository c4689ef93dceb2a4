package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/internal/readers"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/oci/transport"
)

// Options of [Fetch] and [Push]; the zero value is fine.
type Options struct {
	Credentials registry.Credentials
	// Progress may be nil.
	Progress oci.Progress
	// StallTimeout is how long a registry may make no progress; 0 means the default.
	StallTimeout time.Duration

	retries registry.RetryPolicy // the zero value means the default
}

// Fetch copies an image from a registry into an OCI layout: every manifest and blob, verified
// and unchanged, with all children of an index. Without a tag in to, it uses the tag of from,
// or "latest". It skips complete blobs in the layout, so an interrupted fetch resumes. It
// returns the digest of the manifest or index.
func Fetch(ctx context.Context, from, to oci.Reference, o Options) (digest.Digest, error) {
	if !from.IsRegistry() || !to.IsLayout() || to.Digest() != "" {
		return "", fmt.Errorf("%w: fetch goes from a registry to a layout (oci:PATH or oci:PATH:TAG), not from %s to %s", oci.ErrReference, from, to)
	}
	tag := to.Tag()
	if tag == "" {
		tag = from.Tag()
	}
	if tag == "" {
		tag = "latest"
	}
	// Open the registry first, so that a missing image leaves no empty layout.
	d, err := transfer(ctx, from, o, func() (transport.Destination, error) {
		waiting := func() {
			oci.ProgressOrDiscard(o.Progress).Waiting("for another process that writes to " + to.LayoutDir())
		}
		return layout.OpenWriter(ctx, to.LayoutDir(), tag, waiting)
	})
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", from, err)
	}
	return d, nil
}

// Push copies an image from an OCI layout to a registry, verified and unchanged. It skips
// blobs that the registry has.
func Push(ctx context.Context, from, to oci.Reference, o Options) (digest.Digest, error) {
	if !from.IsLayout() || !to.IsRegistry() {
		return "", fmt.Errorf("%w: push goes from a layout (oci:PATH or oci:PATH:TAG) to a registry, not from %s to %s", oci.ErrReference, from, to)
	}
	d, err := transfer(ctx, from, o, func() (transport.Destination, error) {
		return registry.OpenDestination(ctx, to, o.Credentials, o.StallTimeout)
	})
	if err != nil {
		return "", fmt.Errorf("pushing %s to %s: %w", from, to, err)
	}
	return d, nil
}

// transfer copies the image from to the destination that open returns.
func transfer(ctx context.Context, from oci.Reference, o Options, open func() (transport.Destination, error)) (_ digest.Digest, err error) {
	later := o.retries.OrDefault(o.StallTimeout)
	src, err := source.Open(ctx, from, source.Options{Credentials: o.Credentials, StallTimeout: o.StallTimeout}, later)
	if err != nil {
		return "", err
	}
	defer src.Close()
	tree := &imageTree{seen: map[digest.Digest]bool{}, seenBlobs: map[digest.Digest]bool{}}
	if err := tree.walk(ctx, src, v1.Descriptor{Digest: from.Digest()}, 0); err != nil {
		return "", err
	}
	dest, err := registry.Retry(ctx, later.FirstContact(), open)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, dest.Close()) }()
	c := &copier{src: src, dest: dest, progress: oci.ProgressOrDiscard(o.Progress), retries: later}
	if err := c.copy(ctx, tree); err != nil {
		return "", err
	}
	return tree.top().Digest, nil
}

const (
	// maxManifests and maxManifestBytes limit the manifests of one image, which stay in
	// memory until their blobs are copied.
	maxManifests     = 1000
	maxManifestBytes = 64 << 20
)

// An imageTree lists all manifests and blobs of an image, without duplicates.
type imageTree struct {
	// manifests has every child before the index that lists it; the last manifest is the
	// image itself.
	manifests []transport.RawManifest
	blobs     []v1.Descriptor

	// A manifest can be a layer as well, of another image or an artifact.
	seen, seenBlobs map[digest.Digest]bool
	size            int // of the manifests, in bytes
}

func (t *imageTree) top() transport.RawManifest { return t.manifests[len(t.manifests)-1] }

// walk adds the manifest or index that desc describes, after its children. Without a digest
// in desc, it is the one that the reference names.
func (t *imageTree) walk(ctx context.Context, src transport.Source, desc v1.Descriptor, depth int) error {
	if depth > transport.MaxIndexDepth {
		return fmt.Errorf("%w: indexes nest deeper than %d", oci.ErrFormat, transport.MaxIndexDepth)
	}
	if t.seen[desc.Digest] {
		return nil
	}
	doc, err := transport.ReadDocument(ctx, src, desc)
	if err != nil {
		return err
	}
	t.seen[doc.Digest] = true
	if len(t.seen) > maxManifests {
		return fmt.Errorf("%w: more than %d manifests", oci.ErrFormat, maxManifests)
	}
	if t.size += len(doc.Raw); t.size > maxManifestBytes {
		return fmt.Errorf("%w: manifests of more than %d bytes", oci.ErrFormat, maxManifestBytes)
	}
	if doc.Index != nil {
		for _, child := range doc.Index.Manifests {
			if err := t.walk(ctx, src, child, depth+1); err != nil {
				return err
			}
		}
	} else {
		t.addBlobs(doc.Manifest)
	}
	t.manifests = append(t.manifests, transport.RawManifest{Raw: doc.Raw, MediaType: doc.MediaType, Digest: doc.Digest})
	return nil
}

func (t *imageTree) addBlobs(m *format.Manifest) {
	for _, desc := range append(m.Layers, m.Config) {
		if !t.seenBlobs[desc.Digest] {
			t.seenBlobs[desc.Digest] = true
			t.blobs = append(t.blobs, desc)
		}
	}
}

// parallelBlobs is how many blobs are copied at once: one connection seldom uses the whole
// bandwidth.
const parallelBlobs = 4

// A copier copies manifests byte for byte. containers/image's copy would parse them, refuses
// some formats, and needs gpgme.
type copier struct {
	src      transport.Source
	dest     transport.Destination
	progress oci.Progress
	retries  registry.RetryPolicy
}

func (c *copier) copy(ctx context.Context, tree *imageTree) error {
	missing, err := c.missing(ctx, tree.blobs)
	if err != nil {
		return err
	}
	var size int64
	for _, desc := range missing {
		size += desc.Size
	}
	oci.Expect(c.progress, size)
	err = parallel(ctx, missing, func(ctx context.Context, desc v1.Descriptor) error { return c.copyBlob(ctx, desc) })
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w (%s needed)", err, units.BytesSize(float64(size)))
		if d, ok := c.dest.(transport.Discarder); ok {
			err = errors.Join(err, d.Discard())
		}
	}
	if err != nil {
		return err
	}
	children, top := tree.manifests[:len(tree.manifests)-1], tree.top()
	for _, m := range children {
		if err := c.retry(ctx, func() error { return c.dest.PutManifest(ctx, m) }); err != nil {
			return err
		}
	}
	return c.retry(ctx, func() error { return c.dest.Commit(ctx, top) })
}

// missing returns the blobs that the destination lacks.
func (c *copier) missing(ctx context.Context, blobs []v1.Descriptor) ([]v1.Descriptor, error) {
	var mu sync.Mutex
	var missing []v1.Descriptor
	err := parallel(ctx, blobs, func(ctx context.Context, desc v1.Descriptor) error {
		has, err := registry.Retry(ctx, c.retries, func() (bool, error) { return c.dest.Has(ctx, desc) })
		if err != nil {
			return err
		}
		if !has {
			mu.Lock()
			defer mu.Unlock()
			missing = append(missing, desc)
		}
		return nil
	})
	return missing, err
}

// copyBlob copies one blob. Broken reads resume where they stopped; after a failed write the
// blob is sent from the start.
func (c *copier) copyBlob(ctx context.Context, desc v1.Descriptor) error {
	return c.retry(ctx, func() (err error) {
		blob, err := registry.OpenDownload(ctx, c.src, desc, c.retries)
		if err != nil {
			return err
		}
		defer blob.Close()
		transfer := c.progress.Start(transport.ShortDigest(desc), desc.Size)
		defer func() { transfer.Done(err) }()
		return c.dest.PutBlob(ctx, desc, readers.Counting(readers.WithContext(ctx, transport.Verify(blob, desc)), transfer))
	})
}

func (c *copier) retry(ctx context.Context, op func() error) error {
	_, err := registry.Retry(ctx, c.retries, func() (struct{}, error) { return struct{}{}, op() })
	return err
}

// parallel calls do for each blob, several at a time, and stops at the first error.
func parallel(ctx context.Context, blobs []v1.Descriptor, do func(context.Context, v1.Descriptor) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBlobs)
	for _, desc := range blobs {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err // another failed
			}
			return do(ctx, desc)
		})
	}
	return group.Wait()
}
