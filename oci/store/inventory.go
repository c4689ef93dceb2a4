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

// A StoredImage is an image or an interrupted pull in the store.
type StoredImage struct {
	// Digest of the manifest.
	Digest digest.Digest
	// Image is nil if the pull was interrupted.
	Image *oci.Image
	// References are sorted; each resolved to this image in its last pull. An image has
	// none if its reference now resolves to a newer one.
	References []string
	// Usage is the disk usage, in bytes.
	Usage int64
	// LastUsed is the time of the last pull.
	LastUsed time.Time

	key  key
	dir  string
	lock string // name of its lock
}

// Key identifies the image in the store, like [oci.Image.Key].
func (i StoredImage) Key() string { return i.key.String() }

// Inventory lists the images in the store, including interrupted pulls, sorted by digest.
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
		image, ok, err := s.loadEntry(ctx, entry.Name())
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

// loadEntry reads one entry of the directory images; ok is false if it is not an image or was
// removed.
func (s *Store) loadEntry(ctx context.Context, name string) (image StoredImage, ok bool, err error) {
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
		// A damaged image counts as incomplete. Pull returns the error.
		image.Image, _ = s.open(image.key)
	}
	image.Usage, err = diskusage.OfDir(ctx, image.dir)
	return image, true, err
}

// references returns the references of each image.
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

// eachReference calls do with each record and the path of its file. It ignores unreadable
// records.
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
