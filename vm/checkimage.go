package vm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// CheckImage judges an image before its disks are there: whether a machine can be made
// from its domain XML, and run on this host. The names of source.Disks need not be those
// of the image. A nil host is not asked. The error is that of [Start].
//
// A template is not looked at: it is the administrator's, and needs the disks.
func CheckImage(ctx context.Context, h *virt.Host, source domain.Source) error {
	if source.Template != "" {
		return nil
	}
	source.NamesUnknown = true
	built, err := domain.Build(source)
	if err != nil || h == nil {
		return err
	}
	return checkArchitecture(ctx, h, built.Domain)
}

// checkArchitecture refuses machines for which this host has no QEMU. Other drivers of
// libvirt do not say what they run.
func checkArchitecture(ctx context.Context, h *virt.Host, d *libvirtxml.Domain) error {
	driver, err := virt.Await(ctx, "ask libvirt for its driver", h.Libvirt().GetType)
	if err != nil {
		return err
	}
	if driver != "QEMU" || d.OS == nil || d.OS.Type == nil || d.OS.Type.Arch == "" {
		return nil
	}
	text, err := virt.Await(ctx, "ask libvirt for its capabilities", h.Libvirt().GetCapabilities)
	if err != nil {
		return err
	}
	have, err := architectures(text)
	if err != nil || slices.Contains(have, d.OS.Type.Arch) {
		return err
	}
	return fmt.Errorf("%w: the image is for %s, and this host (%s) runs machines for %s: use an image for one of these, or install QEMU's emulator for %[2]s",
		errdefs.ErrInvalid, d.OS.Type.Arch, h.URI(), strings.Join(have, ", "))
}

// architectures are those of the machines that a libvirt with these capabilities runs.
func architectures(capabilities string) ([]string, error) {
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(capabilities); err != nil {
		return nil, fmt.Errorf("read the capabilities of libvirt: %w", err)
	}
	var have []string
	for _, guest := range caps.Guests {
		if guest.OSType == "hvm" && !slices.Contains(have, guest.Arch.Name) {
			have = append(have, guest.Arch.Name)
		}
	}
	return have, nil
}
