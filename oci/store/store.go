package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
)

// A Store is a directory of unpacked images:
//
//	images/<algorithm>-<hex of the manifest digest>.<fingerprint>/   image.json, domain.xml, disks
//	references/<hash of the reference>.json   the image of the last pull of a reference
//	locks/                                    of images, and of pulls in progress
//
// An image directory is complete or absent. Its name has a dash, because QEMU and others
// interpret a relative path with a colon as a URL. The modification time of the directory is
// the time of last use.
//
// Several processes can use a store concurrently.
type Store struct {
	root string // absolute
	// unwritable is the error of writing to the store, if it is read-only.
	unwritable error
}

const (
	imagesDir     = "images"
	referencesDir = "references"
	locksDir      = "locks"
)

// Open opens the store in the directory root, and creates it if necessary. From a read-only
// store, images can be used, but none can be pulled.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	s := &Store{root: root}
	for _, dir := range []string{imagesDir, referencesDir, locksDir} {
		err := os.MkdirAll(filepath.Join(root, dir), 0o755)
		if errors.Is(err, fs.ErrPermission) || isReadOnly(err) {
			s.unwritable = err
		} else if err != nil {
			return nil, fmt.Errorf("opening image store: %w", err)
		}
	}
	return s, nil
}

// Root returns the store's absolute directory.
func (s *Store) Root() string { return s.root }

// Lookup returns the image of the last pull of ref, or the image with the digest in ref. The
// error is [oci.ErrNotFound] if the store does not have it. arch is Go's name of an
// architecture; empty means that of this host.
func (s *Store) Lookup(ref oci.Reference, arch string) (*oci.Image, error) {
	record, err := s.readReference(ref, arch)
	if errors.Is(err, fs.ErrNotExist) {
		if d := ref.Digest(); d != "" {
			return s.ByDigest(d)
		}
		return nil, s.notHeld(ref)
	} else if err != nil {
		return nil, err
	}
	k, err := record.key()
	if err != nil {
		return nil, err
	}
	if record.Image == "" {
		return s.openPlain(k)
	}
	return s.open(k)
}

// ByDigest returns the image with a manifest digest. If different versions of this program
// stored several, it returns the newest. The error is [oci.ErrNotFound] if there is none.
func (s *Store) ByDigest(d digest.Digest) (*oci.Image, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", oci.ErrReference, d, err)
	}
	entries, err := os.ReadDir(filepath.Join(s.root, imagesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for image %s: %w", d, err)
	}
	found, newest := key{digest: d}, time.Time{}
	for _, entry := range entries {
		k, rest, ok := parseKey(entry.Name())
		if !ok || rest != "" || k.digest != d {
			continue
		}
		info, err := os.Stat(filepath.Join(s.imageDir(k), oci.ImageFile))
		if err == nil && info.ModTime().After(newest) {
			found, newest = k, info.ModTime()
		}
	}
	return s.openPlain(found)
}

// List returns all images in the store, sorted by digest.
func (s *Store) List(ctx context.Context) ([]*oci.Image, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, imagesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var images []*oci.Image
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		k, rest, ok := parseKey(entry.Name())
		if !ok || rest != "" {
			continue
		}
		image, err := s.open(k)
		if errors.Is(err, oci.ErrNotFound) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

// open reads the image k.
func (s *Store) open(k key) (*oci.Image, error) {
	dir := s.imageDir(k)
	raw, err := os.ReadFile(filepath.Join(dir, oci.ImageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.notHeld(k.digest)
	} else if err != nil {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	image := &oci.Image{Dir: dir}
	if err := json.Unmarshal(raw, image); err != nil {
		return nil, fmt.Errorf("reading %s: %w; remove the directory to pull the image again", filepath.Join(dir, oci.ImageFile), err)
	}
	if keyOf(image) != k {
		return nil, fmt.Errorf("reading %s: it is of the image %s; remove the directory to pull the image again", filepath.Join(dir, oci.ImageFile), keyOf(image))
	}
	image.DomainXML, err = os.ReadFile(filepath.Join(dir, oci.DomainFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading image: %w", err)
	}
	return image, nil
}

// touch updates the time of last use. It ignores errors: a read-only store is not pruned.
func (s *Store) touch(image *oci.Image) {
	now := time.Now()
	_ = os.Chtimes(image.Dir, now, now)
}

// LastUsed returns the time of the last [Store.Pull] of an image.
func (s *Store) LastUsed(image *oci.Image) (time.Time, error) {
	info, err := os.Stat(image.Dir)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading when the image was used last: %w", err)
	}
	return info.ModTime(), nil
}

// A referenceRecord is the image of the last pull of a reference.
type referenceRecord struct {
	Reference    string `json:"reference"`
	Architecture string `json:"architecture"`
	// Top is the digest of the reference in the registry: that of the manifest, or of an
	// index.
	Top      digest.Digest `json:"top"`
	Manifest digest.Digest `json:"manifest"`
	// Image is the key of the image. Older versions did not write it.
	Image string `json:"image,omitempty"`
	// File is the identity of a file or machine on this host at the last pull.
	File string `json:"file,omitempty"`
}

func (r referenceRecord) key() (key, error) {
	if r.Image == "" {
		return key{digest: r.Manifest}, r.Manifest.Validate()
	}
	k, rest, ok := parseKey(r.Image)
	if !ok || rest != "" {
		return key{}, fmt.Errorf("the record of the image reference %s has the invalid image %q", r.Reference, r.Image)
	}
	return k, nil
}

func (s *Store) referencePath(ref oci.Reference, arch string) string {
	name := digest.FromString(arch + " " + ref.String()).Encoded()
	return filepath.Join(s.root, referencesDir, name+".json")
}

// readReference fails with [fs.ErrNotExist] if the reference is not known.
func (s *Store) readReference(ref oci.Reference, arch string) (referenceRecord, error) {
	arch = oci.Architecture(arch)
	var record referenceRecord
	raw, err := os.ReadFile(s.referencePath(ref, arch))
	if err != nil {
		return record, fmt.Errorf("reading image reference: %w", err)
	}
	if err := json.Unmarshal(raw, &record); err != nil {
		return record, fmt.Errorf("reading %s: %w", s.referencePath(ref, arch), err)
	}
	return record, nil
}

func (s *Store) writeReference(ref oci.Reference, record referenceRecord) error {
	if old, err := s.readReference(ref, record.Architecture); err == nil && old == record {
		return nil
	}
	raw, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.referencePath(ref, record.Architecture), append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("recording image reference: %w", err)
	}
	return nil
}
