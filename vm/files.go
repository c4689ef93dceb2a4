package vm

import (
	"path/filepath"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/domain"
)

// ConsoleFile is the log of the guest's serial console, in the job directory.
const ConsoleFile = "console.log"

// machineFiles are the paths of one machine's files.
func machineFiles(spec *Spec) (dir string, files domain.Files) {
	dir = filepath.Join(spec.CloneDir, spec.Name)
	return dir, domain.Files{
		NVRAM:   filepath.Join(dir, disk.NVRAMFile),
		Console: filepath.Join(spec.JobDir, ConsoleFile),
	}
}
