package domain

import (
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

// Check judges an image before its disks are there: whether a machine can be built from
// its domain XML, and whether the host has an emulator for it. The names of source.Disks
// need not be those of the image. architectures are those of the host, in libvirt's words;
// nil skips that check.
//
// A template is not checked: it is the administrator's, and needs the disks.
func Check(source Source, architectures []string) error {
	if source.Template != "" {
		return nil
	}
	source.NamesUnknown = true
	built, _, err := Build(source)
	if err != nil {
		return err
	}
	return CheckArchitecture(built.Domain, architectures)
}

// CheckArchitecture makes sure that the host has an emulator for the domain. architectures
// are those of the host, in libvirt's words; nil skips the check.
func CheckArchitecture(d *libvirtxml.Domain, architectures []string) error {
	if architectures == nil || d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch == "" || slices.Contains(architectures, d.OS.Type.Arch) {
		return nil
	}
	return fmt.Errorf("%w: the image is for %s, and this host runs machines for %s: use an image for one of these, or install QEMU's emulator for %[2]s",
		errdefs.ErrInvalid, d.OS.Type.Arch, strings.Join(architectures, ", "))
}
