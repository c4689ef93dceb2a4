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

// publish gives a complete image its final name.
func (s *Store) publish(image *oci.Image, partial string) error {
	if err := writeMetadata(image, partial); err != nil {
		return err
	}
	if err := fileutil.SyncDir(partial); err != nil {
		return err
	}
	image.Dir = s.imageDir(image.Digest)
	err := os.Rename(partial, image.Dir)
	if errors.Is(err, fs.ErrExist) {
		// What stands there has no readable image.json, or we would not be here.
		err = fmt.Errorf("%w; remove the damaged image there", err)
	}
	if err != nil {
		return fmt.Errorf("naming the finished image: %w", err)
	}
	return fileutil.SyncDir(s.imageDir(image.Digest) + "/..")
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
