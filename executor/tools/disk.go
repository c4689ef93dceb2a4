package tools

import (
	"debug/elf"
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm/toolsdisk"
)

// Disk makes the disk with this host's gitlab-runner for guests of those settings, and
// step-runner if the host has one. It is nil if there is no gitlab-runner, or none for such
// guests. dir is the directory of all such disks.
func Disk(settings config.Resolved, dir string) (*toolsdisk.Disk, error) {
	if settings.RunnerBinary == config.RunnerOff {
		return nil, nil
	}
	path, err := guestshell.HostRunner(settings.RunnerBinary)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	system, err := platformOf(path)
	if err != nil || system.windows != settings.Windows() {
		return nil, err
	}
	name := "gitlab-runner"
	if system.windows {
		name += ".exe"
	}
	programs := []toolsdisk.Program{{Name: name, Path: path}}
	if step, err := exec.LookPath(stepRunner); err == nil {
		if of, err := platformOf(step); err == nil && of == system {
			programs = append(programs, toolsdisk.Program{Name: stepRunner, Path: step})
		}
	}
	disk, err := toolsdisk.Make(dir, programs)
	if err != nil {
		return nil, err
	}
	return &toolsdisk.Disk{Path: disk, Architecture: system.architecture, Windows: system.windows}, nil
}

// A platform is what a program runs on. The zero value is that of a script.
type platform struct {
	architecture string // by libvirt's name
	windows      bool
}

var elfMachines = map[elf.Machine]string{
	elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64", elf.EM_ARM: "armv7l", elf.EM_PPC64: "ppc64le", elf.EM_S390: "s390x", elf.EM_RISCV: "riscv64",
}

var peMachines = map[uint16]string{pe.IMAGE_FILE_MACHINE_AMD64: "x86_64", pe.IMAGE_FILE_MACHINE_ARM64: "aarch64"}

// platformOf reads the header of a program. Programs for macOS are an error: its guests
// cannot use the disk.
func platformOf(path string) (p platform, err error) {
	file, err := os.Open(path)
	if err != nil {
		return p, err
	}
	defer file.Close()
	var mark [2]byte
	if _, err := file.ReadAt(mark[:], 0); err != nil {
		return p, fmt.Errorf("%s is not a program: %w", path, err)
	}
	if string(mark[:]) == "#!" {
		return p, nil
	}
	if header, err := elf.NewFile(file); err == nil {
		p.architecture = elfMachines[header.Machine]
	} else if header, err := pe.NewFile(file); err == nil {
		p = platform{peMachines[header.Machine], true}
	}
	if p.architecture == "" {
		return p, fmt.Errorf("%s is neither a program for Linux or Windows nor a script", path)
	}
	return p, nil
}
