package domain

import (
	"context"
	"fmt"
	"runtime"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/domainxml"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/kvm"
)

// The values of the setting accel.
const (
	AccelAuto = "auto"
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// Accelerate selects KVM or emulation. Another architecture is always emulated. With auto, an image that asks for emulation gets it.
// accel is one of the constants above, or empty for auto; cache is the directory for the
// result of the KVM probe.
func Accelerate(ctx context.Context, d *libvirtxml.Domain, accel, cache string) (warning string, err error) {
	if accel == "" {
		accel = AccelAuto
	}
	if accel == AccelAuto && d.Type == "qemu" {
		accel = AccelTCG
	}
	if arch := archOf(d); !isNative(arch) {
		if accel == AccelKVM {
			return "", fmt.Errorf("%w: accel is kvm, and a machine for %s cannot use the KVM of this host, which is %s: set accel = \"auto\" for the image", errdefs.ErrInvalid, arch, runtime.GOARCH)
		}
		domainxml.UseTCG(d)
		return fmt.Sprintf("the image is for %s, and this host is %s: the machine is emulated, which is slow", arch, runtime.GOARCH), nil
	}
	switch accel {
	case AccelKVM:
		domainxml.UseKVM(d)
	case AccelTCG:
		domainxml.UseTCG(d)
	case AccelAuto:
		if why := kvm.Works(ctx, cache); why != nil {
			domainxml.UseTCG(d)
			return fmt.Sprintf("no working KVM on this host (%v): the machine is emulated, which is slow", why), nil
		}
		domainxml.UseKVM(d)
	default:
		return "", fmt.Errorf("%w: accel is %q: want auto, kvm or tcg", errdefs.ErrInvalid, accel)
	}
	return "", nil
}
