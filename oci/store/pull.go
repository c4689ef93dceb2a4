package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/registry/distribution"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/oci/space"
	"gitlab-sardine-executor/oci/transport"
	"gitlab-sardine-executor/oci/unpack"
)

// DefaultMaxDisk is the default of [PullOptions.MaxDisk]: 1 TiB.
const DefaultMaxDisk int64 = 1 << 40

// PullOptions of [Store.Pull]; the zero value is fine.
type PullOptions struct {
	// Policies are tried in order until one succeeds; none means [oci.PullAlways].
	Policies []oci.PullPolicy
	// Credentials for the registry.
	Credentials registry.Credentials
	// Architecture to select from an index (Go's name); empty means that of this host.
	Architecture string
	// MaxDisk is the maximum virtual size and file size of a disk, in bytes; 0 means
	// [DefaultMaxDisk].
	MaxDisk int64
	// Reserve stays free on the file system of the store.
	Reserve space.Reserve
	// Check is called with the description of an image before its disks are transferred. An
	// error ends the pull. It is not called for images in the store. nil accepts all.
	Check func(*oci.Inspection) error
	// Unused: the pull does not count as a use of the image.
	Unused bool
	// Progress may be nil.
	Progress oci.Progress
	// StallTimeout is how long a registry may send less than 1000 bytes per second; 0 means
	// a minute.
	StallTimeout time.Duration
	// Machines describes virtual machines of this host; nil if there are none.
	Machines oci.Machines

	room    func(dir string) (space.Room, error) // nil means space.Of
	retries registry.RetryPolicy                 // the zero value means the default
}

func (o PullOptions) ask() func(string) (space.Room, error) {
	if o.room == nil {
		return space.Of
	}
	return o.room
}

func (o PullOptions) source() source.Options {
	return source.Options{Credentials: o.Credentials, StallTimeout: o.StallTimeout, Machines: o.Machines}
}

func (o PullOptions) maxDisk() int64 {
	if o.MaxDisk <= 0 {
		return DefaultMaxDisk
	}
	return o.MaxDisk
}

// Pull returns the image ref, complete and verified. If the store does not have it, Pull
// transfers it. If several processes pull the same image from the same repository, one pulls
// and the others wait while it makes progress. The image is locked, and not removed, until
// [oci.Image.Close] or the end of this process. [oci.IsPermanent] classifies errors.
//
// Pull retries after transient failures, and resumes broken connections. An interrupted pull
// leaves its files for the next one, which verifies them.
func (s *Store) Pull(ctx context.Context, ref oci.Reference, o PullOptions) (*oci.Image, error) {
	policies := o.Policies
	if len(policies) == 0 {
		policies = []oci.PullPolicy{oci.PullAlways}
	}
	var failed error
	for _, policy := range policies {
		image, err := s.pullBy(ctx, policy, ref, o)
		if err == nil {
			if !o.Unused {
				s.touch(image)
			}
			return image, nil
		}
		failed = joinPolicies(failed, policy, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// joinPolicies combines the errors of two policies. It keeps both texts, but wraps only one:
// the result is permanent only if both are, because a registry that is down may come back.
func joinPolicies(failed error, policy oci.PullPolicy, err error) error {
	switch {
	case failed == nil:
		return err
	case oci.IsPermanent(failed) && !oci.IsPermanent(err):
		return fmt.Errorf("%v; with pull policy %s: %w", failed, policy, err)
	}
	return fmt.Errorf("%w; with pull policy %s: %v", failed, policy, err)
}

func (s *Store) pullBy(ctx context.Context, policy oci.PullPolicy, ref oci.Reference, o PullOptions) (*oci.Image, error) {
	switch policy {
	case oci.PullNever:
		return s.lookupHeld(ctx, ref, o)
	case oci.PullIfNotPresent:
		image, err := s.lookupHeld(ctx, ref, o)
		if err == nil || !errors.Is(err, oci.ErrNotFound) {
			return image, err
		}
	case oci.PullAlways:
	default:
		return nil, fmt.Errorf("pull policy %q: want %s, %s or %s", policy, oci.PullAlways, oci.PullIfNotPresent, oci.PullNever)
	}
	return s.pull(ctx, ref, o)
}

// lookupHeld is Lookup, and locks the image.
func (s *Store) lookupHeld(ctx context.Context, ref oci.Reference, o PullOptions) (*oci.Image, error) {
	image, err := s.Lookup(ref, o.Architecture)
	if err != nil {
		return nil, err
	}
	return s.hold(ctx, keyOf(image))
}

func (s *Store) pull(ctx context.Context, ref oci.Reference, o PullOptions) (*oci.Image, error) {
	image, identity, err := s.lookupFile(ctx, ref, o)
	if image != nil || err != nil {
		return image, err
	}
	later := o.retries.OrDefault(o.StallTimeout)
	src, err := source.Open(ctx, ref, o.source(), later)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	src = registry.WithRetries(src, later)
	defer src.Close()
	image, err = s.pullFrom(ctx, src, ref, identity, o)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	return image, nil
}

// lookupFile returns the locked image of a disk file or virtual machine of this host that has not
// changed since the last pull. identity is empty for other images.
func (s *Store) lookupFile(ctx context.Context, ref oci.Reference, o PullOptions) (image *oci.Image, identity string, err error) {
	if identity, err = source.Identify(ctx, ref, o.source()); err != nil {
		return nil, "", fmt.Errorf("pulling %s: %w", ref, err)
	} else if identity == "" {
		return nil, "", nil
	}
	record, err := s.readReference(ref, o.Architecture)
	if err != nil || record.File != identity {
		return nil, identity, nil
	}
	k, err := record.key()
	if err != nil {
		return nil, identity, nil
	}
	image, err = s.hold(ctx, k)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, identity, nil
	}
	return image, identity, err
}

func (s *Store) pullFrom(ctx context.Context, src transport.Source, ref oci.Reference, file string, o PullOptions) (*oci.Image, error) {
	top, err := transport.ReadDocument(ctx, src, v1.Descriptor{Digest: ref.Digest()})
	if err != nil {
		return nil, err
	}
	arch := oci.Architecture(o.Architecture)
	if record, err := s.readReference(ref, arch); err == nil && record.Top == top.Digest && record.Image != "" && record.File == file {
		if k, err := record.key(); err == nil {
			image, err := s.hold(ctx, k)
			if err == nil || !errors.Is(err, oci.ErrNotFound) {
				return image, err
			}
		}
	}
	m, d, plan, err := transport.ResolvePlan(ctx, src, top, arch)
	if err != nil {
		return nil, err
	}
	image, err := s.obtain(ctx, s.want(src, m, plan, d, ref, o), plan)
	if err != nil {
		return nil, err
	}
	record := referenceRecord{Reference: ref.String(), Architecture: arch, Top: top.Digest, Manifest: d, Image: keyOf(image).String(), File: file}
	if err := s.writeReference(ref, record); err != nil && !isUnwritable(err) {
		return nil, errors.Join(err, image.Close())
	}
	return image, nil
}

// want describes the image with manifest m and digest d in src.
func (s *Store) want(src transport.Source, m *format.Manifest, plan *format.Plan, d digest.Digest, ref oci.Reference, o PullOptions) want {
	k := key{d, plan.Fingerprint()}
	return want{
		key: k, source: sourceOf(ref), stall: cmp.Or(o.StallTimeout, distribution.DefaultStallTimeout), progress: oci.ProgressOrDiscard(o.Progress),
		pull: func(ctx context.Context, meter *meter, dir string) (*oci.Image, error) {
			image, err := s.unpack(ctx, meteredSource{src, meter}, m, plan, unpack.Options{
				Dir: dir, Images: filepath.Join(s.root, imagesDir), MaxDisk: o.maxDisk(), Reserve: o.Reserve, Ask: o.ask(), Progress: meter,
			}, o.judge(ref, d))
			if err == nil {
				image.Digest, image.Reading, image.Reference = k.digest, k.reading, ref.String()
			}
			return image, err
		},
	}
}

// judge returns Check for the image with manifest digest d.
func (o PullOptions) judge(ref oci.Reference, d digest.Digest) func(*oci.Inspection) error {
	return func(i *oci.Inspection) error {
		i.Reference, i.Digest = ref.String(), d
		if o.Check == nil {
			return nil
		}
		return o.Check(i)
	}
}

// unpack writes the files of an image, unless its plan is invalid or judge refuses it.
func (s *Store) unpack(ctx context.Context, src transport.Source, m *format.Manifest, plan *format.Plan, o unpack.Options, judge func(*oci.Inspection) error) (*oci.Image, error) {
	if err := unpack.CheckPlan(plan, o.MaxDisk); err != nil {
		return nil, err
	}
	i, err := source.InspectManifest(ctx, src, m, plan)
	if err != nil {
		return nil, err
	}
	if err := judge(i); err != nil {
		return nil, err
	}
	if err := os.Mkdir(o.Dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("creating the image's directory: %w", err)
	}
	o.DomainXML, o.Guest = i.DomainXML, i.Guest
	return unpack.Run(ctx, src, plan, o)
}

// isResumable reports whether to keep the files for the next pull. On a full disk they would
// only waste space.
func isResumable(err error) bool {
	return !oci.IsPermanent(err) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT)
}
