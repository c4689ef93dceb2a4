package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// publish gives a complete image its final name.
func (s *Store) publish(image *Image, partial string) error {
	if err := writeMetadata(image, partial); err != nil {
		return err
	}
	if err := syncDir(partial); err != nil {
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
	return syncDir(s.imageDir(image.Digest) + "/..")
}

func writeMetadata(image *Image, dir string) error {
	raw, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", imageFile, err)
	}
	files := map[string][]byte{imageFile: append(raw, '\n')}
	if image.DomainXML != nil {
		files[domainFile] = image.DomainXML
	}
	for name, content := range files {
		if err := writeSynced(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}
