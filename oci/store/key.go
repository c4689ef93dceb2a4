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

// A key identifies an image in the store: by its manifest, and by how the manifest was read.
type key struct {
	digest digest.Digest // of the manifest
	// reading is the fingerprint of the plan ([format.Plan.Fingerprint]). It is empty for
	// images of older versions, see upgrade.go.
	reading string
}

// String returns the name of the image's directory and lock.
func (k key) String() string {
	name := k.digest.Algorithm().String() + "-" + k.digest.Encoded()
	if k.reading != "" {
		name += "." + k.reading
	}
	return name
}

var readingPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// parseKey parses the name of an image's directory. rest is the part after the key, such as in
// the name of a turn.
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

// keyOf returns the key of an image in the store.
func keyOf(image *oci.Image) key { return key{image.Digest, image.Reading} }

func (s *Store) imageDir(k key) string { return filepath.Join(s.root, imagesDir, k.String()) }

// removedPrefix marks directories of images that are being removed.
const removedPrefix = ".removed-"

// partialDir returns the directory of a turn's pull.
func (s *Store) partialDir(turn string) string {
	return filepath.Join(s.root, imagesDir, space.PartialPrefix+turn)
}

// notHeld returns the error for an image that is not in the store.
func (s *Store) notHeld(what fmt.Stringer) error {
	return fmt.Errorf("%w: %s is not in the store %s", oci.ErrNotFound, what, s.root)
}
