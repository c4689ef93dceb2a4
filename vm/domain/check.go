package domain

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/defaultmachine"
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
	return CheckArchitecture(source, built.Domain, architectures)
}

// CheckArchitecture makes sure that the machine is one for the host, or that source allows to
// emulate it and the host has an emulator. architectures are those of the host, in libvirt's
// words; nil skips the check. A template is the administrator's, and may have any architecture.
func CheckArchitecture(source Source, d *libvirtxml.Domain, architectures []string) error {
	arch := archOf(d)
	switch {
	case architectures == nil || arch == "":
		return nil
	case source.Template == "" && !isNative(arch) && !mayEmulate(source, arch):
		return fmt.Errorf("%w: the image is for %s, and this host is %s: use an image for %[3]s%s",
			errdefs.ErrInvalid, arch, runtime.GOARCH, howToEmulate(arch))
	case !slices.Contains(architectures, arch):
		return fmt.Errorf("%w: the image is for %s, and this host runs machines for %s: use an image for one of these, or install QEMU's emulator for %[2]s%[4]s",
			errdefs.ErrInvalid, arch, strings.Join(architectures, ", "), emulatorPackages[arch])
	}
	return nil
}

// emulatorPackages name the packages of emulators, for people.
var emulatorPackages = map[string]string{
	"aarch64": " (Debian: apt install qemu-system-arm; Fedora: dnf install qemu-system-aarch64)",
	"x86_64":  " (Debian and Fedora: qemu-system-x86)",
}

// howToEmulate names the setting, if it can have that value.
func howToEmulate(arch string) string {
	for _, name := range []string{"amd64", "arm64"} {
		if board, ok := defaultmachine.BoardFor(name); ok && board.Arch == arch {
			return fmt.Sprintf("; to emulate it, which is slow, the administrator sets architecture = %q for the image", name)
		}
	}
	return ""
}

func mayEmulate(source Source, arch string) bool {
	board, ok := defaultmachine.BoardFor(source.Emulate)
	return ok && board.Arch == arch
}

// native are the architectures that a host runs without emulation, in libvirt's words.
var native = map[string][]string{"amd64": {"x86_64", "i686"}, "arm64": {"aarch64", "armv7l"}}

// isNative reports whether this host can run machines of an architecture without emulation.
func isNative(arch string) bool {
	mine, known := native[runtime.GOARCH]
	return !known || arch == "" || slices.Contains(mine, arch)
}

// archOf returns the architecture of a domain; empty if it does not say.
func archOf(d *libvirtxml.Domain) string {
	if d.OS == nil || d.OS.Type == nil {
		return ""
	}
	return d.OS.Type.Arch
}
