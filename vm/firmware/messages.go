package firmware

import (
	"fmt"
	"strings"

	"gitlab-sardine-executor/vm/errdefs"
)

// refusals are what the firmware of a machine writes to its console when it has nothing to
// boot: EDK2 (BdsDxe, and the shell that it starts then) and SeaBIOS.
var refusals = []string{
	"No bootable option or device was found",
	"UEFI Interactive Shell",
	"No bootable device",
	"Boot failed: not a bootable disk",
}

// Refusal returns what the firmware says in the last lines of a guest's console if it found
// nothing to boot; empty if it does not say that.
func Refusal(console string) string {
	if i := strings.LastIndex(console, "BdsDxe: failed to load"); i >= 0 && strings.Contains(console[i:], "Access Denied") {
		return "Access Denied (is its boot loader signed? firmware = \"uefi\" does not ask for that)"
	}
	for _, text := range refusals {
		if strings.Contains(console, text) {
			return text
		}
	}
	return ""
}

// Explain makes err an [errdefs.ErrInvalid] that names the package to install, if libvirt found
// no firmware on the host for a machine of that architecture, by libvirt's name. It
// returns other errors as they are.
func Explain(err error, arch string) error {
	if err == nil {
		return nil
	}
	text := strings.ToLower(err.Error())
	// src/qemu/qemu_firmware.c: "Unable to find any firmware to satisfy 'efi'", and since
	// libvirt 9.2 "Unable to find 'efi' firmware that is compatible with …".
	if !strings.Contains(text, "unable to find") || !strings.Contains(text, "'efi'") {
		return err
	}
	return fmt.Errorf("%w: the image boots by UEFI, and %s: %w", errdefs.ErrInvalid, Missing(arch), err)
}

// Missing says which package a host needs that has no UEFI for an architecture.
func Missing(arch string) string {
	debian, fedora := "ovmf", "edk2-ovmf"
	if arch == "aarch64" {
		debian, fedora = "qemu-efi-aarch64", "edk2-aarch64"
	}
	return fmt.Sprintf("this host has no such firmware (Debian: apt install %s; Fedora: dnf install %s)", debian, fedora)
}
