package executor

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/vm/virt"
)

// sizeVariables are the variables that choose the size of a machine.
var sizeVariables = []string{config.VariableCPUs, config.VariableMemory, config.VariableDisk}

// minSize is the least memory and the least disk, in bytes, that a job may ask for. No
// guest runs in less: what was forgotten is the unit.
const minSize = 16 << 20

// A Size is what a job's machine gets; 0 means what the image asks for.
type Size struct {
	CPUs   uint
	Memory uint64 // bytes
	Disk   int64  // bytes
	// Chosen says that the job has chosen any of it.
	Chosen bool
}

// SizeFor is the size that the settings want on a host with so many CPUs that serves
// concurrency machines at once (0: one for each CPU). Where hostCPUs is 0, the number
// is not known, and cpus = "auto" means what the image asks for.
func SizeFor(settings config.Resolved, hostCPUs, concurrency uint) Size {
	size := Size{Memory: settings.Memory, Disk: settings.Disk}
	switch {
	case settings.CPUs != config.AutoCPUs:
		size.CPUs = uint(settings.CPUs)
	case hostCPUs > 0:
		size.CPUs = max(1, hostCPUs/cmp.Or(concurrency, hostCPUs))
	}
	return size
}

// size of the job's machine: the settings, or the job's own wishes where it may
// have any. The limits of the settings are not its business, but [vm.Spec]'s,
// except for the disk's, which is bound here.
func (d *Driver) size(settings config.Resolved, host virt.HostSize) (Size, error) {
	size := SizeFor(settings, host.CPUs, d.Settings.Defaults.Concurrency)
	for _, name := range sizeVariables {
		wish := d.Job.Variable(name)
		if wish == "" {
			continue
		}
		if !slices.Contains(d.Settings.Defaults.AllowedJobVariables, name) {
			return size, d.refuseVariable(name)
		}
		size.Chosen = true
		if err := size.grant(name, wish); err != nil {
			return size, failure.OfJob(fmt.Errorf("the job's variable %s is %q: %w", name, wish, err))
		}
	}
	if most := settings.MaxDisk; size.Disk > most {
		d.Log.Warn("the machine gets a disk of %s, not %s: that is the limit here (max_disk)",
			units.BytesSize(float64(most)), units.BytesSize(float64(size.Disk)))
		size.Disk = most
	}
	return size, nil
}

// refuseVariable says that a job may not choose what it chose.
func (d *Driver) refuseVariable(name string) error {
	return failure.OfJob(fmt.Errorf("the job sets %s, which is not allowed here (allowed_job_variables: %q)",
		name, d.Settings.Defaults.AllowedJobVariables))
}

// grant sets what a variable of the job asks for.
func (s *Size) grant(name, wish string) error {
	if name == config.VariableCPUs {
		n, err := strconv.ParseUint(wish, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("want a number of CPUs, 1 to %d", math.MaxUint16)
		}
		s.CPUs = uint(n)
		return nil
	}
	n, err := units.RAMInBytes(wish)
	if err != nil || n < minSize { // negative if it is more than there are numbers for
		return fmt.Errorf("want a size such as 4GiB, at least %s", units.BytesSize(minSize))
	}
	if name == config.VariableMemory {
		s.Memory = uint64(n)
	} else {
		s.Disk = n
	}
	return nil
}
