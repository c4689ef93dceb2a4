package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/internal/diskusage"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/space"
)

// A StoredImage is what a store holds of an image, and what it knows of its use.
type StoredImage struct {
	// Digest of the manifest.
	Digest digest.Digest
	// Image is nil if it is not complete: its pull was interrupted.
	Image *oci.Image
	// References are the names that stood for the image when they were pulled last,
	// in order. An image whose name stands for a newer one by now has none.
	References []string
	// Usage is the space that the files take on the disk, in bytes.
	Usage int64
	// LastUsed is when a job, or somebody by hand, pulled the image or found it
	// there.
	LastUsed time.Time

	key  key
	dir  string
	lock string // its name
}

// Key names the image in the store, as [oci.Image.Key].
func (i StoredImage) Key() string { return i.key.String() }

// Inventory lists what the store holds, images that are not complete included, in
// the order of their digests.
func (s *Store) Inventory(ctx context.Context) ([]StoredImage, error) {
	names, err := s.references()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(s.root, imagesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var stored []StoredImage
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		image, ok, err := s.take(ctx, entry.Name())
		if err != nil {
			return nil, err
		}
		if ok {
			image.References = names[image.key]
			stored = append(stored, image)
		}
	}
	slices.SortStableFunc(stored, func(a, b StoredImage) int { return cmp.Compare(a.key.String(), b.key.String()) })
	return stored, nil
}

// take looks at one entry of the images' directory; ok is false if it is no
// image, or is gone.
func (s *Store) take(ctx context.Context, name string) (image StoredImage, ok bool, err error) {
	image.lock = strings.TrimPrefix(name, space.PartialPrefix)
	partial := image.lock != name
	var rest string
	image.key, rest, ok = parseKey(image.lock)
	if !ok || rest != "" && !partial {
		return image, false, nil
	}
	image.Digest = image.key.digest
	image.dir = filepath.Join(s.root, imagesDir, name)
	info, err := os.Stat(image.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return image, false, nil
	} else if err != nil {
		return image, false, fmt.Errorf("listing images: %w", err)
	}
	image.LastUsed = info.ModTime()
	if !partial {
		// A damaged image counts as incomplete: whoever wants it is told more.
		image.Image, _ = s.open(image.key)
	}
	image.Usage, err = diskusage.OfDir(ctx, image.dir)
	return image, true, err
}

// references are the names of each image.
func (s *Store) references() (map[key][]string, error) {
	names := make(map[key][]string)
	err := s.eachReference(func(_ string, record referenceRecord) error {
		if k, err := record.key(); err == nil {
			names[k] = append(names[k], record.Reference)
		}
		return nil
	})
	for _, list := range names {
		slices.Sort(list)
	}
	return names, err
}

// eachReference calls do with each record and the path of its file. What cannot
// be read is no name.
func (s *Store) eachReference(do func(path string, record referenceRecord) error) error {
	dir := filepath.Join(s.root, referencesDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("listing image references: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		var record referenceRecord
		raw, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(raw, &record) != nil {
			continue
		}
		if err := do(path, record); err != nil {
			return err
		}
	}
	return nil
}
