package store

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

// A key names an image in the store. It covers everything that decided how the bytes of the
// image were read: the manifest, which names them, and what was made of it.
type key struct {
	digest digest.Digest // of the manifest
	// reading is the fingerprint of the plan, see [format.Plan.Fingerprint]. It is empty for
	// images that an older version stored, see upgrade.go.
	reading string
}

// String is the name of the image's directory and of its lock.
func (k key) String() string {
	name := k.digest.Algorithm().String() + "-" + k.digest.Encoded()
	if k.reading != "" {
		name += "." + k.reading
	}
	return name
}

var readingPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// parseKey reads the name of an image's directory. What follows the key in a longer name, as
// in that of a [turn], is returned as rest.
func parseKey(name string) (k key, rest string, ok bool) {
	name, reading, hasReading := strings.Cut(name, ".")
	algorithm, encoded, ok := strings.Cut(name, "-")
	k.digest = digest.NewDigestFromEncoded(digest.Algorithm(algorithm), encoded)
	if !ok || k.digest.Validate() != nil {
		return key{}, "", false
	}
	k.reading, rest, _ = strings.Cut(reading, ".")
	if hasReading && !readingPattern.MatchString(k.reading) {
		return key{}, "", false
	}
	return k, rest, true
}

// keyOf is the key of an image that the store holds.
func keyOf(image *oci.Image) key { return key{image.Digest, image.Reading} }

func (s *Store) imageDir(k key) string { return filepath.Join(s.root, imagesDir, k.String()) }

// removedPrefix marks directories of images that are being removed.
const removedPrefix = ".removed-"

// partialDir is the directory of an image that is pulled in a turn.
func (s *Store) partialDir(turn string) string {
	return filepath.Join(s.root, imagesDir, space.PartialPrefix+turn)
}

// notHeld is the error for an image that the store does not hold.
func (s *Store) notHeld(what fmt.Stringer) error {
	return fmt.Errorf("%w: %s is not in the store %s", oci.ErrNotFound, what, s.root)
}
