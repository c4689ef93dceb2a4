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

// NVRAMFile is the name of the file with the UEFI variables of a machine, among its files.
const NVRAMFile = "nvram.fd"

// MaxNVRAM bounds the variables of a UEFI firmware, in bytes. Real ones have
// between 128 KiB (OVMF) and 64 MiB (arm64).
const MaxNVRAM = 256 << 20

// HasNVRAM says whether a domain keeps UEFI variables in a file.
func HasNVRAM(system *libvirtxml.DomainOS) bool {
	switch {
	case system == nil || (system.Loader != nil && system.Loader.Stateless == "yes"):
		return false
	case system.NVRam != nil || system.Firmware == "efi":
		return true
	}
	return system.Loader != nil && system.Loader.Type == "pflash"
}

// CopyNVRAM copies to path the UEFI variables that a domain names, or those at
// otherwise if it names none. If there are none, libvirt will make them at path,
// from its template.
func CopyNVRAM(system *libvirtxml.DomainOS, path, otherwise string) error {
	if !HasNVRAM(system) {
		return nil
	}
	from, err := NamedNVRAM(system)
	if err != nil {
		return err
	}
	if from == "" {
		from = otherwise
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

// NamedNVRAM is the file with UEFI variables that a domain names; empty if it names
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

// SetNVRAM names the file of a domain's UEFI variables, and leaves the template
// and the format as they are.
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

// CopyFile copies an ordinary file of at most so many bytes to a new one that
// only its owner can read. On failure there is none.
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
		return fmt.Errorf("it is no ordinary file of at most %d bytes", most)
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
