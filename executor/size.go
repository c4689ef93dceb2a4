package executor

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/virt"
)

// sizeVariables are the variables that choose the size of a machine.
var sizeVariables = []string{config.VariableCPUs, config.VariableMemory, config.VariableDisk}

// minSize is the least memory and the least disk, in bytes, that a job may ask for. No
// guest runs in less: what was forgotten is the unit.
const minSize = 16 << 20

// A machineSize is what a job's machine gets; 0 means what the image asks for.
type machineSize struct {
	cpus   uint
	memory uint64 // bytes
	disk   int64  // bytes
	// chosen says that the job has chosen any of it.
	chosen bool
}

// size of the job's machine: the settings, or the job's own wishes where it may
// have any. The limits of the settings are not its business, but [vm.Spec]'s,
// except for the disk's, which is bound here.
func (d *Driver) size(settings config.Resolved, host virt.HostSize) (machineSize, error) {
	size := machineSize{memory: settings.Memory, disk: settings.Disk}
	if settings.CPUs == config.AutoCPUs {
		size.cpus = max(1, host.CPUs/max(1, cmp.Or(d.Settings.Defaults.Concurrency, host.CPUs)))
	} else {
		size.cpus = uint(settings.CPUs)
	}
	for _, name := range sizeVariables {
		wish := d.Job.Variable(name)
		if wish == "" {
			continue
		}
		if !slices.Contains(d.Settings.Defaults.AllowedJobVariables, name) {
			return size, d.refuseVariable(name)
		}
		size.chosen = true
		if err := size.grant(name, wish); err != nil {
			return size, jobFault(fmt.Errorf("the job's variable %s is %q: %w", name, wish, err))
		}
	}
	if most := settings.MaxDisk; size.disk > most {
		d.Log.Warn("the machine gets a disk of %s, not %s: that is the limit here (max_disk)",
			units.BytesSize(float64(most)), units.BytesSize(float64(size.disk)))
		size.disk = most
	}
	return size, nil
}

// refuseVariable says that a job may not choose what it chose.
func (d *Driver) refuseVariable(name string) error {
	return jobFault(fmt.Errorf("the job sets %s, which is not allowed here (allowed_job_variables: %q)",
		name, d.Settings.Defaults.AllowedJobVariables))
}

// grant sets what a variable of the job asks for.
func (s *machineSize) grant(name, wish string) error {
	if name == config.VariableCPUs {
		n, err := strconv.ParseUint(wish, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("want a number of CPUs, 1 to %d", math.MaxUint16)
		}
		s.cpus = uint(n)
		return nil
	}
	n, err := units.RAMInBytes(wish)
	if err != nil || n < minSize { // negative if it is more than there are numbers for
		return fmt.Errorf("want a size such as 4GiB, at least %s", units.BytesSize(minSize))
	}
	if name == config.VariableMemory {
		s.memory = uint64(n)
	} else {
		s.disk = n
	}
	return nil
}
