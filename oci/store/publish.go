package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"gitlab-sardine-executor/internal/fileutil"
	"gitlab-sardine-executor/oci"
)

// publish renames a complete image to its final name. If several processes pulled the image,
// the first is published; the others are equal.
func (s *Store) publish(image *oci.Image, k key, partial string) error {
	if err := writeMetadata(image, partial); err != nil {
		return err
	}
	if err := fileutil.SyncDir(partial); err != nil {
		return err
	}
	image.Dir = s.imageDir(k)
	err := os.Rename(partial, image.Dir)
	if errors.Is(err, fs.ErrExist) {
		if s.has(k) {
			return os.RemoveAll(partial)
		}
		err = fmt.Errorf("%w; remove the damaged image there", err)
	}
	if err != nil {
		return fmt.Errorf("renaming the complete image: %w", err)
	}
	return fileutil.SyncDir(filepath.Dir(image.Dir))
}

func writeMetadata(image *oci.Image, dir string) error {
	raw, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", oci.ImageFile, err)
	}
	files := map[string][]byte{oci.ImageFile: append(raw, '\n')}
	if image.DomainXML != nil {
		files[oci.DomainFile] = image.DomainXML
	}
	for name, content := range files {
		if err := fileutil.WriteSynced(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}
