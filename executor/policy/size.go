package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/joblog"
)

// sizeVariables are the job variables that choose the size of a machine.
var sizeVariables = []string{config.VariableCPUs, config.VariableMemory, config.VariableDisk}

// minSize is the smallest memory and disk, in bytes, that a job may choose. No guest runs
// with less: a smaller number has no unit.
const minSize = 16 << 20

// A Size is the size of a job's machine; 0 means what the image asks for.
type Size struct {
	CPUs   uint
	Memory uint64 // bytes
	Disk   int64  // bytes
	// Chosen says that the job chose some of it.
	Chosen bool
}

// SizeFor returns the size in the settings. concurrency divides the CPUs of the host for
// cpus = "auto"; 0 means hostCPUs. If hostCPUs is 0, it is not known, and "auto" is what
// the image asks for.
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

// Size returns the size of the job's machine: that of the settings, or what the job
// chooses, if it may. [vm.Spec] has the limits for CPUs and memory; max_disk is applied
// here.
func (p Policy) Size(settings config.Resolved, hostCPUs uint, log *joblog.Log) (Size, error) {
	size := SizeFor(settings, hostCPUs, p.Settings.Defaults.Concurrency)
	for _, name := range sizeVariables {
		wish := p.Job.Variable(name)
		if wish == "" {
			continue
		}
		if !slices.Contains(p.Settings.Defaults.AllowedJobVariables, name) {
			return size, p.refuse(name)
		}
		size.Chosen = true
		if err := size.grant(name, wish); err != nil {
			return size, failure.OfJob(fmt.Errorf("the job's variable %s is %q: %w", name, wish, err))
		}
	}
	if most := settings.MaxDisk; size.Disk > most {
		log.Warn("the disk of the machine is %s, not %s: the limit is max_disk",
			units.BytesSize(float64(most)), units.BytesSize(float64(size.Disk)))
		size.Disk = most
	}
	return size, nil
}

// refuse returns the error for a job variable that is not allowed.
func (p Policy) refuse(name string) error {
	return failure.OfJob(fmt.Errorf("the job sets %s, which is not allowed here (allowed_job_variables: %q)",
		name, p.Settings.Defaults.AllowedJobVariables))
}

// grant applies a job variable.
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
	if err != nil || n < minSize { // negative after an overflow
		return fmt.Errorf("want a size such as 4GiB, at least %s", units.BytesSize(minSize))
	}
	if name == config.VariableMemory {
		s.Memory = uint64(n)
	} else {
		s.Disk = n
	}
	return nil
}
