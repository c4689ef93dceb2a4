package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Versions before fingerprints named an image by its manifest alone, and read the manifest as
// the index said through which it came: an index could say that the layer of a container image
// is a raw disk. Such an image may not be what its manifest means.
//
// An index had a say in the formats below only; the name of the format was stored. All other
// images are what their manifest means, and stay in use, under their old names, since disks of
// machines may stand on them. One in such a format stays in use where the manifest is at hand
// and means the same.

// formatsByIndex are the formats for which older versions heeded the index.
var formatsByIndex = []string{"machine-os", "diskimage", "kubevirt"}

// isPlain reports whether an image is what its manifest means, as far as that can be told
// without the manifest.
func isPlain(image *oci.Image) bool {
	return image.Reading != "" || !slices.Contains(formatsByIndex, image.Format)
}

// adoptable reports whether an image of an older version is what its manifest's plan says.
// In formatsByIndex, format and names of disks follow from all that decided how it was read.
func adoptable(image *oci.Image, plan *format.Plan) bool {
	if image.Format != plan.Format || len(image.Disks) != len(plan.Disks) {
		return false
	}
	return isPlain(image) || slices.EqualFunc(image.Disks, plan.Disks, func(have oci.Disk, want format.Disk) bool {
		return have.Name == want.Name
	})
}

// holdOlder holds the image k as an older version stored it. The error is [oci.ErrNotFound] if
// there is none, or one that is not what plan says.
func (s *Store) holdOlder(ctx context.Context, k key, plan *format.Plan) (*oci.Image, error) {
	image, err := s.hold(ctx, key{digest: k.digest})
	if err != nil {
		return nil, err
	}
	if !adoptable(image, plan) {
		return nil, errors.Join(s.notHeld(k), image.Close())
	}
	return image, nil
}

// openPlain opens the image k if it is what its manifest means, as far as that can be told
// without the manifest.
func (s *Store) openPlain(k key) (*oci.Image, error) {
	image, err := s.open(k)
	if err == nil && !isPlain(image) {
		return nil, fmt.Errorf("%w: %s was stored by an older version, which let an index decide how it is read: pull it again", oci.ErrNotFound, k.digest)
	}
	return image, err
}
