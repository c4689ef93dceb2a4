// Package place knows where a machine has its files, and finds the machine of a job.
package place

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// A Place is where a machine has its files.
type Place struct {
	// OverlayDir is the directory for overlays. QEMU must be able to reach it. The overlays
	// of a machine are in OverlayDir/NAME until QEMU has opened them.
	OverlayDir string
	// JobDir is the directory for files of this machine that outlive the process: secrets
	// and the console log. vm.Start creates it with mode 0700.
	JobDir string
}

// ConsoleFile is the log of the guest's serial console, in the job directory.
const ConsoleFile = "console.log"

// Files returns the directory for the overlays of the machine of that name, and the paths
// of its files.
func (p Place) Files(name string) (dir string, files domain.Files) {
	dir = filepath.Join(p.OverlayDir, name)
	return dir, domain.Files{
		NVRAM:   filepath.Join(dir, disk.NVRAMFile),
		Console: filepath.Join(p.JobDir, ConsoleFile),
	}
}

// Storage is the directory for files that the machines of this host share.
func (p Place) Storage() string { return filepath.Dir(p.JobDir) }

// Of is the place of the machine with that domain, which has its files beside those of p.
func (p Place) Of(domain string) Place {
	return Place{OverlayDir: p.OverlayDir, JobDir: filepath.Join(p.Storage(), domain)}
}

// Locate returns the name of the domain of the machine that a job knows by that name, and
// its place: another one than p if the job has taken an idle machine. If the job's link to
// it is lost, Locate looks for the job in the records of the domains.
func (p Place) Locate(ctx context.Context, h *virt.Host, name string) (domain string, _ Place, err error) {
	domain = idle.Domain(p.Storage(), name)
	if domain != name {
		return domain, p.Of(domain), nil
	}
	if !idle.Used(p.Storage()) {
		return name, p, nil
	}
	dom, err := h.Domain(ctx, name)
	if err == nil {
		dom.Free()
		return name, p, nil
	}
	if !errors.Is(err, errdefs.ErrNoDomain) {
		return "", p, err
	}
	machines, err := record.List(ctx, h)
	if err != nil {
		return "", p, fmt.Errorf("find the machine %s: %w", name, err)
	}
	for _, m := range machines {
		if m.Record.Machine == name {
			return m.Name, p.Of(m.Name), nil
		}
	}
	return name, p, nil
}
