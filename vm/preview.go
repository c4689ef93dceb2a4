package vm

import (
	"math"
	"path/filepath"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
)

// Preview returns the domain that [Start] would start, and what is dropped from the
// image's. It does not look at the host: acceleration, limits and the network are decided
// there.
func Preview(spec Spec) (doc string, dropped []string, err error) {
	built, _, err := domain.Build(spec.Source)
	if err != nil {
		return "", nil, err
	}
	spec.Resize(built.Domain)
	dir, files := spec.Files(spec.Name)
	if files.BackingStore, err = domain.WritesBackingStore(spec.OmitBackingStore, math.MaxUint32); err != nil {
		return "", nil, err
	}
	files.Overlays = make(map[string]string)
	for _, base := range disk.TopDisks(spec.Disks) {
		if !base.CDROM {
			files.Overlays[base.Name] = filepath.Join(dir, disk.OverlayName(base.Name))
		}
	}
	if err := domain.ApplyInstance(built.Domain, spec.Name, spec.Disks, files); err != nil {
		return "", nil, err
	}
	if built.Domain.Metadata, err = spec.Record.Metadata(); err != nil {
		return "", nil, err
	}
	doc, err = built.Domain.Marshal()
	return doc, built.Dropped, err
}
