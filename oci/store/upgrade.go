package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Older versions identified an image by its manifest only, but an index could influence how
// they read the manifest: it could declare that the layer of a container image is a raw disk.
// So the image in the store may differ from its manifest.
//
// This is only possible for the formats below. All other images of older versions stay in use
// under their old names, because disks of machines may use them as backing files. An image in
// one of these formats stays in use if it matches the plan of its manifest.

// formatsByIndex are the formats for which older versions used the index.
var formatsByIndex = []string{"machine-os", "diskimage", "kubevirt"}

// isPlain reports whether an image is known to match its manifest, without reading the
// manifest.
func isPlain(image *oci.Image) bool {
	return image.Reading != "" || !slices.Contains(formatsByIndex, image.Format)
}

// adoptable reports whether an image of an older version matches the plan of its manifest. For
// formatsByIndex, the format and the names of the disks are sufficient.
func adoptable(image *oci.Image, plan *format.Plan) bool {
	if image.Format != plan.Format || len(image.Disks) != len(plan.Disks) {
		return false
	}
	return isPlain(image) || slices.EqualFunc(image.Disks, plan.Disks, func(have oci.Disk, want format.Disk) bool {
		return have.Name == want.Name
	})
}

// holdOlder locks the image k of an older version. The error is [oci.ErrNotFound] if there is
// none, or if it does not match plan.
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

// openPlain opens the image k if it is known to match its manifest.
func (s *Store) openPlain(k key) (*oci.Image, error) {
	image, err := s.open(k)
	if err == nil && !isPlain(image) {
		return nil, fmt.Errorf("%w: %s was stored by an older version, in which an index could change its content: pull it again", oci.ErrNotFound, k.digest)
	}
	return image, err
}
