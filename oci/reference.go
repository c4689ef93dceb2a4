package oci

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Prefixes of references to images on this host: OCI layouts, as in skopeo, disk files, and
// virtual machines of libvirt.
const (
	layoutPrefix  = "oci:"
	filePrefix    = "file:"
	machinePrefix = "libvirt:"
)

// A Reference names an image in a registry, in a local OCI layout, or a disk file or virtual
// machine on this host. The zero value names nothing.
type Reference struct {
	named reference.Named // with a tag or a digest, never both; nil for a layout

	layout string        // absolute directory of the layout
	tag    string        // in the layout; empty means its only image
	digest digest.Digest // of the manifest in the layout, instead of a tag

	file string // absolute and clean path of a disk

	machine string // name of a virtual machine of libvirt
}

// ParseReference reads
//
//	registry.example.com/vms/debian:12            a tag; none means "latest"
//	registry.example.com/vms/debian@sha256:…      a manifest digest
//	debian:12                                     docker.io/library/debian:12
//	oci:PATH, oci:PATH:TAG, oci:PATH@sha256:…     a local layout
//	file:PATH, file:///PATH                       a disk, qcow2 or raw
//	libvirt:NAME                                  a virtual machine of libvirt
//
// If there are both a tag and a digest, the digest is used. skopeo's prefix docker:// is
// accepted. PATH may be relative to the working directory. Errors are [ErrReference].
func ParseReference(text string) (Reference, error) {
	if path, ok := strings.CutPrefix(text, layoutPrefix); ok {
		return parseLayout(path)
	}
	if path, ok := strings.CutPrefix(text, filePrefix); ok {
		return parseFile(path)
	}
	// libvirt's names have no slash: libvirt:5000/vms/debian is in a registry.
	if name, ok := strings.CutPrefix(text, machinePrefix); ok && !strings.Contains(name, "/") {
		return parseMachine(name)
	}
	named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(text, "docker://"))
	if err != nil {
		return Reference{}, fmt.Errorf("%w: %q: %w", ErrReference, text, err)
	}
	if canonical, ok := named.(reference.Canonical); ok {
		named, err = reference.WithDigest(reference.TrimNamed(named), canonical.Digest())
		if err != nil {
			return Reference{}, fmt.Errorf("%w: %q: %w", ErrReference, text, err)
		}
	}
	return Reference{named: reference.TagNameOnly(named)}, nil
}

func parseLayout(path string) (Reference, error) {
	var ref Reference
	if dir, text, ok := strings.Cut(path, "@"); ok && strings.Contains(text, ":") {
		d, err := digest.Parse(text)
		if err != nil {
			return Reference{}, fmt.Errorf("%w: %q: %w", ErrReference, layoutPrefix+path, err)
		}
		path, ref.digest = dir, d
	} else if i := strings.LastIndexByte(path, ':'); i >= 0 && !strings.Contains(path[i:], "/") {
		path, ref.tag = path[:i], path[i+1:]
		if ref.tag == "" {
			return Reference{}, fmt.Errorf("%w: %q: no tag after the colon", ErrReference, layoutPrefix+path+":")
		}
	}
	if path == "" || strings.ContainsRune(path, 0) {
		return Reference{}, fmt.Errorf("%w: %q: want oci:PATH or oci:PATH:TAG", ErrReference, layoutPrefix+path)
	}
	dir, err := filepath.Abs(path)
	if err != nil {
		return Reference{}, fmt.Errorf("finding the layout %s: %w", path, err)
	}
	ref.layout = dir
	return ref, nil
}

func parseFile(path string) (Reference, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/") {
		return Reference{}, fmt.Errorf("%w: %q: want file:/PATH, the absolute path of a disk", ErrReference, filePrefix+path)
	}
	return Reference{file: filepath.Clean(path)}, nil
}

func parseMachine(name string) (Reference, error) {
	const most = 255 // bytes, since libvirt names files after the machine
	if name == "" || len(name) > most || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return Reference{}, fmt.Errorf("%w: %q: want libvirt:NAME, the name of a virtual machine", ErrReference, machinePrefix+name)
	}
	return Reference{machine: name}, nil
}

// String returns the full reference, which [ParseReference] accepts.
func (r Reference) String() string {
	switch {
	case r.named != nil:
		return r.named.String()
	case r.digest != "":
		return layoutPrefix + r.layout + "@" + r.digest.String()
	case r.tag != "":
		return layoutPrefix + r.layout + ":" + r.tag
	case r.layout != "":
		return layoutPrefix + r.layout
	case r.file != "":
		return filePrefix + r.file
	case r.machine != "":
		return machinePrefix + r.machine
	}
	return ""
}

// IsLayout reports whether the image is in a local OCI layout.
func (r Reference) IsLayout() bool { return r.layout != "" }

// File returns the absolute and clean path of a disk file; empty for other images.
func (r Reference) File() string { return r.file }

// Machine returns the name of a virtual machine of libvirt; empty for other images.
func (r Reference) Machine() string { return r.machine }

// LocalPrefix returns the prefix of references to images on this host: "oci:", "file:" or
// "libvirt:"; empty for an image in a registry.
func (r Reference) LocalPrefix() string {
	switch {
	case r.layout != "":
		return layoutPrefix
	case r.file != "":
		return filePrefix
	case r.machine != "":
		return machinePrefix
	}
	return ""
}

// Registry returns the registry's HOST[:PORT], such as "docker.io"; empty for an image on
// this host.
func (r Reference) Registry() string {
	if r.named == nil {
		return ""
	}
	return reference.Domain(r.named)
}

// Repository returns the full name without tag and digest, such as
// "docker.io/library/debian"; empty for an image on this host.
func (r Reference) Repository() string {
	if r.named == nil {
		return ""
	}
	return r.named.Name()
}

// Tag returns the tag; empty if r has a digest.
func (r Reference) Tag() string {
	if tagged, ok := r.named.(reference.Tagged); ok {
		return tagged.Tag()
	}
	return r.tag
}

// LayoutIn returns the layout OCIDIR/REPOSITORY for an image in a registry, with its tag. An
// underscore replaces the colon before a port: skopeo ends PATH at the first colon.
func (r Reference) LayoutIn(ocidir string) (Reference, error) {
	if r.named == nil {
		return Reference{}, fmt.Errorf("%w: %s is on this host already", ErrReference, r)
	}
	dir, err := filepath.Abs(filepath.Join(ocidir, strings.ReplaceAll(r.Repository(), ":", "_")))
	if err != nil {
		return Reference{}, fmt.Errorf("finding the layout of %s: %w", r, err)
	}
	return Reference{layout: dir, tag: r.Tag()}, nil
}

// Digest returns the manifest digest; empty if r has a tag.
func (r Reference) Digest() digest.Digest {
	if canonical, ok := r.named.(reference.Canonical); ok {
		return canonical.Digest()
	}
	return r.digest
}

// LayoutDir returns the absolute directory of the layout; empty for an image in a registry.
func (r Reference) LayoutDir() string { return r.layout }

// IsRegistry reports whether the image is in a registry.
func (r Reference) IsRegistry() bool { return r.named != nil }

// AtDigest returns the reference to an image by its digest in the same layout.
func (r Reference) AtDigest(d digest.Digest) Reference { return Reference{layout: r.layout, digest: d} }
