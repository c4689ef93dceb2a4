package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

// NVRAMFile is the name of the file with the UEFI variables of a machine.
const NVRAMFile = "nvram.fd"

// MaxNVRAM is the maximum size of a file with UEFI variables, in bytes. Real files have 128
// KiB (OVMF) to 64 MiB (arm64).
const MaxNVRAM = 256 << 20

// HasNVRAM reports whether a domain stores UEFI variables in a file.
func HasNVRAM(system *libvirtxml.DomainOS) bool {
	switch {
	case system == nil || (system.Loader != nil && system.Loader.Stateless == "yes"):
		return false
	case system.NVRam != nil || system.Firmware == "efi":
		return true
	}
	return system.Loader != nil && system.Loader.Type == "pflash"
}

// CopyNVRAM copies the UEFI variables that a domain names, or the file fallback if it names
// none, to path. If there are none, libvirt creates them at path from its template.
func CopyNVRAM(system *libvirtxml.DomainOS, path, fallback string) error {
	if !HasNVRAM(system) {
		return nil
	}
	from, err := NamedNVRAM(system)
	if err != nil {
		return err
	}
	if from == "" {
		from = fallback
	}
	if from == "" {
		return nil
	}
	if _, err := os.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := CopyFile(from, path, MaxNVRAM); err != nil {
		return fmt.Errorf("copy the UEFI variables %s: %w", from, err)
	}
	return nil
}

// NamedNVRAM returns the file with UEFI variables that a domain names; empty if it names
// none.
func NamedNVRAM(system *libvirtxml.DomainOS) (string, error) {
	if !HasNVRAM(system) || system.NVRam == nil {
		return "", nil
	}
	source := system.NVRam.Source
	switch {
	case source == nil:
		return strings.TrimSpace(system.NVRam.NVRam), nil
	case source.File == nil:
		return "", fmt.Errorf("%w: its UEFI variables are not in a file", errdefs.ErrInvalid)
	}
	return source.File.File, nil
}

// SetNVRAM sets the file with the UEFI variables of a domain. Template and format stay as
// they are.
func SetNVRAM(system *libvirtxml.DomainOS, path string) {
	nvram := libvirtxml.DomainNVRam{}
	if system.NVRam != nil {
		nvram = *system.NVRam
	}
	if nvram.Source != nil {
		nvram.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
	} else {
		nvram.NVRam = path
	}
	system.NVRam = &nvram
}

// CopyFile copies a regular file of at most so many bytes to a new file that only its owner
// can read. If it fails, it leaves no file.
func CopyFile(from, to string, most int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return fmt.Errorf("it is not a regular file of at most %d bytes", most)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, most))
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}
