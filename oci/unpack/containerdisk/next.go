package containerdisk

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// Next returns nil after the lowest layer, if write got the disk. Otherwise it returns where the
// disk is: at the target of a link, or in the root. Layers are streams, so they must be read
// again. Errors are [oci.ErrFormat].
func (l *Finder) Next() (*format.ContainerDisk, error) {
	targets := l.targets()
	switch {
	case len(l.found) > 1 || len(l.found) == 1 && len(targets) > 0 || len(targets) > 1:
		return nil, l.severalError(targets)
	case len(l.found) == 1:
		return nil, nil
	case len(targets) == 1:
		return &format.ContainerDisk{Layers: l.disk.Layers, Path: targets[0]}, nil
	case len(l.atRoot) == 1:
		return &format.ContainerDisk{Layers: l.disk.Layers, Path: l.atRoot[0]}, nil
	case len(l.atRoot) > 1:
		return nil, fmt.Errorf("%w: a container image without a file in /%s/, and with several in /: %s; want one in /%[2]s/", oci.ErrFormat, l.disk.Path, quoted(l.atRoot))
	case l.disk.NamedDisk:
		return nil, fmt.Errorf("%w: no file *.qcow2, *.img or *.raw in the directory %q of the artifact", oci.ErrFormat, l.disk.Path)
	case l.disk.Directory:
		return nil, fmt.Errorf("%w: a container image without a file in /%s/; want a disk there, or a virtual machine image in another format", oci.ErrFormat, l.disk.Path)
	}
	return nil, fmt.Errorf("%w: the image has no file /%s", oci.ErrFormat, l.disk.Path)
}

// targets returns the paths to which the links lead, apart from files that were found. A link
// may lead to another link in the same directory.
func (l *Finder) targets() []string {
	unique := map[string]bool{}
	for _, target := range l.links {
		for range l.links {
			if further, ok := l.links[target]; ok {
				target = further
			}
		}
		if !slices.Contains(l.found, target) {
			unique[target] = true
		}
	}
	return slices.Sorted(maps.Keys(unique))
}

// severalError is the error for an image with more than one file in the disk's directory.
func (l *Finder) severalError(targets []string) error {
	names := slices.Concat(l.found, targets)
	for i, name := range names {
		names[i] = strings.TrimPrefix(strings.TrimPrefix(name, l.disk.Path), "/")
	}
	return fmt.Errorf("%w: several files in /%s/: %s; want one", oci.ErrFormat, l.disk.Path, quoted(names))
}

// quoted quotes the first names for an error.
func quoted(names []string) string {
	if len(names) > maxFound {
		return fmt.Sprintf("%q and others", names[:maxFound])
	}
	return fmt.Sprintf("%q", names)
}
