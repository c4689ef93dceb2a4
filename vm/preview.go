package vm

import (
	"math"
	"path/filepath"
	"strings"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
)

// Preview is the domain that [Start] would start, and what is dropped from the
// image's, without a look at the host: whether it runs on KVM, its limits and its
// network are decided there.
func Preview(spec Spec) (doc string, dropped []string, err error) {
	rebuilt, err := domain.Build(spec.source())
	if err != nil {
		return "", nil, err
	}
	spec.size().Resize(rebuilt.Domain)
	dir, files := machineFiles(&spec)
	if files.BackingStore, err = domain.WritesBackingStore(spec.OmitBackingStore, math.MaxUint32); err != nil {
		return "", nil, err
	}
	files.Overlays = make(map[string]string)
	for _, base := range disk.TopDisks(spec.Disks) {
		if !base.CDROM {
			stem := strings.TrimSuffix(base.Name, filepath.Ext(base.Name))
			files.Overlays[base.Name] = filepath.Join(dir, stem+".qcow2")
		}
	}
	metadata, err := spec.Record.Metadata()
	if err != nil {
		return "", nil, err
	}
	if err := (domain.Instance{Name: spec.Name, Metadata: metadata, Disks: spec.Disks, Files: files}).Apply(rebuilt.Domain); err != nil {
		return "", nil, err
	}
	doc, err = rebuilt.Domain.Marshal()
	return doc, rebuilt.Dropped, err
}
