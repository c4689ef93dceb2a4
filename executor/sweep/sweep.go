// Package sweep removes what jobs left on a host: machines that have expired, and files.
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

// Options configure [Run].
type Options struct {
	// All removes the machines of all jobs, running ones included.
	All bool
	// DryRun removes nothing.
	DryRun bool
	// Addresses releases the addresses of libvirt networks that are reserved for later
	// machines.
	Addresses bool
	// Now is compared with the expiry in the machines' records.
	Now time.Time
	// Metrics count what is removed; nil for none.
	Metrics *metrics.Changes
}

// Swept is a machine, or files of one, that no job owns.
type Swept struct {
	// Machine is its name; of an address, the address.
	Machine string
	// Reason, such as "expired at …".
	Reason string
}

// Run removes machines that have expired, because a killed runner does not clean up,
// and files without a machine; with Addresses, also addresses that no machine has. The
// record in its domain, not its name alone, makes a domain the machine of a job. Run
// continues after errors, and returns what it removed and all errors. When ctx ends,
// libvirt still completes what it was asked for.
func Run(ctx context.Context, host *virt.Host, dirs config.Dirs, o Options) ([]Swept, error) {
	machines, err := record.List(ctx, host)
	if err != nil {
		return nil, err
	}
	rule := removal.Rule{Now: o.Now, Force: o.All, DryRun: o.DryRun, Abandoned: idle.Abandoned(dirs.Jobs, o.Now)}
	var swept []Swept
	var going []record.InstanceInfo
	var failed []error
	for _, m := range machines {
		if ctx.Err() != nil {
			break
		}
		if !rule.Applies(m.Record) {
			continue
		}
		removed, err := removal.Expired(ctx, host, m.Name, vm.Place{OverlayDir: dirs.Overlays, JobDir: filepath.Join(dirs.Jobs, m.Name)}, rule)
		if err != nil {
			failed = append(failed, fmt.Errorf("sweep machine %s: %w", m.Name, err))
			continue
		}
		if !removed {
			continue
		}
		swept, going = append(swept, Swept{m.Name, reasonFor(m.Record, rule)}), append(going, m)
	}
	abandoned, err := sweepFiles(ctx, host, dirs, o)
	if !o.DryRun {
		failed = append(failed, console.Sweep(dirs.Consoles, o.Now))
	}
	swept = append(swept, abandoned...)
	if o.Metrics != nil && !o.DryRun && len(swept) > 0 {
		o.Metrics.Count("sardine_swept_total", float64(len(swept)))
	}
	failed = append(failed, err)
	if o.Addresses {
		idle, err := dhcp.Sweep(ctx, host, o.DryRun, going)
		for _, a := range idle {
			swept = append(swept, Swept{a.Address.String(), "reserved on network " + a.Network + ", and no machine has it"})
		}
		failed = append(failed, err)
	}
	return swept, errors.Join(failed...)
}

// reasonFor says why the rule removes a machine.
func reasonFor(m record.Record, rule removal.Rule) string {
	switch {
	case rule.Force:
		return "swept with all others"
	case rule.Now.Before(m.Expires):
		return "idle, and no serve looks after it"
	}
	return "expired at " + m.Expires.Format(time.RFC3339)
}

// sweepFiles removes the files of machines that are not running.
func sweepFiles(ctx context.Context, host *virt.Host, dirs config.Dirs, o Options) ([]Swept, error) {
	var swept []Swept
	var failed []error
	names := make(map[string]bool)
	for _, dir := range []string{dirs.Jobs, dirs.Overlays} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Errorf("sweep: %w", err))
		}
		for _, entry := range entries {
			if entry.IsDir() && (job.IsMachineName(entry.Name()) || idle.IsName(entry.Name())) {
				names[entry.Name()] = true
			}
		}
	}
	for name := range names {
		removed, err := removal.Abandoned(ctx, host, name, vm.Place{OverlayDir: dirs.Overlays, JobDir: filepath.Join(dirs.Jobs, name)}, o.DryRun)
		if err != nil {
			failed = append(failed, fmt.Errorf("sweep the files of %s: %w", name, err))
		}
		if removed {
			swept = append(swept, Swept{name, "its domain is gone"})
		}
	}
	failed = append(failed, idle.Tidy(dirs.Jobs, o.DryRun))
	return swept, errors.Join(failed...)
}
