package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci/format"
)

// DefaultMaxDisk is the size of the largest disk that is accepted if nobody
// says otherwise: 1 TiB.
const DefaultMaxDisk int64 = 1 << 40

// PullOptions; the zero value is fine.
type PullOptions struct {
	// Policies are tried in order until one succeeds; none means [PullAlways].
	Policies []PullPolicy
	// Credentials for the registry.
	Credentials Credentials
	// Architecture to choose from an index, in Go's words; empty means this
	// machine's.
	Architecture string
	// MaxDisk is the largest disk accepted, in bytes, by its virtual size and by
	// the size of its file; 0 means [DefaultMaxDisk].
	MaxDisk int64
	// Reserve is what unpacking leaves free on the file system of the store.
	Reserve Reserve
	// Check judges an image by what its manifest and its small layers say, before a
	// disk is transferred. Its error ends the pull. It is not asked about images that
	// the store holds. nil accepts all.
	Check func(*Inspection) error
	// Progress may be nil.
	Progress Progress
	// StallTimeout is how long a registry may make no progress worth the name: less
	// than 1000 bytes for each second of it. 0 means a minute.
	StallTimeout time.Duration

	room     func(dir string) (Room, error) // nil means RoomOf
	patience patience                       // the zero value means patienceFor(StallTimeout)
}

func (o PullOptions) ask() func(string) (Room, error) {
	if o.room == nil {
		return RoomOf
	}
	return o.room
}

func (o PullOptions) maxDisk() int64 {
	if o.MaxDisk <= 0 {
		return DefaultMaxDisk
	}
	return o.MaxDisk
}

// Pull makes sure that the store holds the image ref, complete and verified, and
// returns it. Of several processes that want one image, one pulls and the others
// wait. The image is held: nobody removes it from the store until [Image.Close] or
// the end of this process. The sentinels of this package tell which errors are
// final.
//
// A registry that fails in a way that may pass is tried again, and a connection
// that breaks is taken up where it broke. What a pull that was interrupted has
// finished is kept for the next one, which verifies it.
func (s *Store) Pull(ctx context.Context, ref Reference, o PullOptions) (*Image, error) {
	policies := o.Policies
	if len(policies) == 0 {
		policies = []PullPolicy{PullAlways}
	}
	var failed error
	for _, policy := range policies {
		image, err := s.pullBy(ctx, policy, ref, o)
		if err == nil {
			s.touch(image)
			return image, nil
		}
		failed = joinPolicies(failed, policy, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// joinPolicies adds the failure of the next policy. Both texts are kept, but only
// one error: the whole is final only if both are, for a registry that is down
// may come back.
func joinPolicies(failed error, policy PullPolicy, err error) error {
	switch {
	case failed == nil:
		return err
	case Final(failed) && !Final(err):
		return fmt.Errorf("%v; with pull policy %s: %w", failed, policy, err)
	}
	return fmt.Errorf("%w; with pull policy %s: %v", failed, policy, err)
}

func (s *Store) pullBy(ctx context.Context, policy PullPolicy, ref Reference, o PullOptions) (*Image, error) {
	switch policy {
	case PullNever:
		return s.lookupHeld(ctx, ref, o)
	case PullIfNotPresent:
		image, err := s.lookupHeld(ctx, ref, o)
		if err == nil || !errors.Is(err, ErrNotFound) {
			return image, err
		}
	case PullAlways:
	default:
		return nil, fmt.Errorf("pull policy %q: want %s, %s or %s", policy, PullAlways, PullIfNotPresent, PullNever)
	}
	return s.pull(ctx, ref, o)
}

// lookupHeld is Lookup for an image that is about to be used.
func (s *Store) lookupHeld(ctx context.Context, ref Reference, o PullOptions) (*Image, error) {
	image, err := s.Lookup(ref, o.Architecture)
	if err != nil {
		return nil, err
	}
	return s.acquire(ctx, image.Digest, o.waiting(image.Digest), nil)
}

// waiting tells people what a pull waits for.
func (o PullOptions) waiting(d digest.Digest) func() {
	return func() {
		progressOrSilent(o.Progress).Waiting(fmt.Sprintf("another process pulls the same image (%s)", d))
	}
}

func (s *Store) pull(ctx context.Context, ref Reference, o PullOptions) (*Image, error) {
	later := o.patience.orFor(o.StallTimeout)
	src, err := openPatiently(ctx, ref, o.Credentials, o.StallTimeout, later)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	src = newPatientSource(src, later)
	defer src.Close()
	image, err := s.pullFrom(ctx, src, ref, o)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	return image, nil
}

func (s *Store) pullFrom(ctx context.Context, src source, ref Reference, o PullOptions) (*Image, error) {
	top, err := readDocument(ctx, src, v1.Descriptor{Digest: ref.Digest()})
	if err != nil {
		return nil, err
	}
	arch := architecture(o.Architecture)
	if record, err := s.readReference(ref, arch); err == nil && record.Top == top.digest {
		image, err := s.acquire(ctx, record.Manifest, o.waiting(record.Manifest), nil)
		if err == nil || ctx.Err() != nil {
			return image, err
		}
	}
	m, d, err := resolve(ctx, src, top, arch)
	if err != nil {
		return nil, err
	}
	image, err := s.acquire(ctx, d, o.waiting(d), func() error { return s.unpack(ctx, src, m, d, ref, o) })
	if err != nil {
		return nil, err
	}
	err = s.writeReference(ref, referenceRecord{Reference: ref.String(), Architecture: arch, Top: top.digest, Manifest: d})
	if err != nil && !isUnwritable(err) {
		return nil, errors.Join(err, image.Close())
	}
	return image, nil
}

// unpack makes the directory of an image. Our caller has its lock.
func (s *Store) unpack(ctx context.Context, src source, m *format.Manifest, d digest.Digest, ref Reference, o PullOptions) error {
	i, plan, err := inspectManifest(ctx, src, m)
	if err != nil {
		return err
	}
	i.Reference, i.Digest = ref.String(), d
	if err := checkPlan(plan, o.maxDisk()); err != nil {
		return err
	}
	if o.Check != nil {
		if err := o.Check(i); err != nil {
			return err
		}
	}
	partial := s.partialDir(d)
	if err := os.Mkdir(partial, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the image's directory: %w", err)
	}
	image, err := unpackPlan(ctx, src, plan, unpackOptions{
		Dir: partial, Images: filepath.Join(s.root, imagesDir), DomainXML: i.DomainXML, Guest: i.Guest,
		MaxDisk: o.maxDisk(), Reserve: o.Reserve, Ask: o.ask(), Progress: progressOrSilent(o.Progress),
	})
	if err == nil {
		image.Digest, image.Reference = d, ref.String()
		err = s.publish(image, partial)
	}
	if err != nil && !isResumable(err) {
		err = errors.Join(err, os.RemoveAll(partial))
	}
	return err
}

// isResumable reports whether what was unpacked before a failure is of use to the
// next pull. On a full disk it would only be in the way.
func isResumable(err error) bool {
	return !Final(err) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT)
}
