package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// A plan is what the settings and the job say before anything is asked or made.
type plan struct {
	ref      oci.Reference
	settings config.Resolved
	policies []oci.PullPolicy
	dirs     config.Dirs
}

// plan checks the wishes of the job.
func (d *Driver) plan() (p plan, err error) {
	if p.ref, p.settings, err = d.image(); err != nil {
		return p, err
	}
	if p.policies, err = d.pullPolicies(p.settings); err != nil {
		return p, err
	}
	if _, err = d.keepTime(p.settings); err != nil {
		return p, err
	}
	p.dirs, err = d.Settings.Dirs()
	return p, err
}

// Prepare is the prepare stage: image, machine, guest. When it returns nil, the
// guest answers and everything that the later stages need is on record; when it
// fails, nothing of the machine is left.
func (d *Driver) Prepare(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			d.metrics.Count("sardine_jobs_total", 1, "result", outcome.ResultOf(ctx, err))
		}
	}()
	defer d.phase("prepare")()
	p, err := d.plan()
	if err != nil {
		return err
	}
	if d.Job.Services {
		d.Log.Warn("services: is ignored: GitLab Runner starts no services for a custom executor")
	}
	host, err := OpenHost(ctx, d.Settings)
	if err != nil {
		return err
	}
	defer host.Close()
	if p.settings.Cache == string(cache.Share) {
		if err := cache.CheckShares(host.Host); err != nil {
			return err
		}
	}
	d.sweep(ctx, host, p.dirs)
	if err := d.clearWay(ctx, host, p.dirs); err != nil {
		return err
	}
	defer func() {
		if err == nil { // it may have been told to end when all was done
			err = context.Cause(ctx)
		}
		if err != nil {
			d.saveConsole(p.dirs, err)
			err = errors.Join(err, d.undo(ctx, host, p.dirs))
		}
	}()
	defer d.gauge(ctx, host, p.dirs)
	err = d.prepareMachine(ctx, host, p)
	if errors.Is(err, errNotResumed) {
		err = d.prepareAnew(ctx, host, p, err)
	}
	return err
}

// prepareMachine starts the job's machine and makes it ready for the job.
func (d *Driver) prepareMachine(ctx context.Context, host *vm.Host, p plan) error {
	machine, err := d.start(ctx, host, p)
	if err != nil {
		return err
	}
	defer machine.Guest.Close()
	return d.handOver(ctx, machine, p)
}

// start makes the job's machine and starts it.
func (d *Driver) start(ctx context.Context, host *vm.Host, p plan) (*Machine, error) {
	hostSize, err := host.Size(ctx)
	if err != nil {
		return nil, err
	}
	size, err := d.size(p.settings, hostSize)
	if err != nil {
		return nil, err
	}
	policy := admissionPolicy(d.Settings)
	policy.Waiting = func(reason string) { d.Log.Say("Waiting for room on this host: %s", reason) }
	progress := d.Log.Progress("Pulling")
	defer d.countPull(progress)
	return FetchAndClone(ctx, host, FetchAndCloneOptions{
		Image: p.ref,
		Pull: oci.PullOptions{
			Policies:    p.policies,
			Credentials: oci.Credentials{AuthConfig: d.Job.AuthConfig(), Accounts: d.Job.Accounts},
			MaxDisk:     p.settings.MaxDisk,
			Progress:    progress,
		},
		Dirs:      p.dirs,
		Name:      d.Job.VMName(),
		Settings:  p.settings,
		Size:      size,
		Admission: policy,
		Cache:     d.cache(p.settings, p.dirs),
		Record:    d.record(time.Now()),
		Log:       d.Log,
		Phase:     d.phase,
		Detail:    func(text string) { d.admin().Debug(text) },
	})
}

// admissionPolicy is when the host has room for another machine.
func admissionPolicy(s *config.Settings) admission.Policy {
	return admission.Policy{
		Slots:   s.Defaults.Slots,
		Reserve: int64(s.Defaults.HostReserve),
		Timeout: time.Duration(s.Defaults.QueueTimeout),
	}
}

// countPull counts what a pull transferred, if it did.
func (d *Driver) countPull(progress *joblog.Lines) {
	if moved := progress.Moved(); moved > 0 {
		d.metrics.Count("sardine_pulls_total", 1)
		d.metrics.Count("sardine_pulled_bytes_total", float64(moved))
	}
}

// handOver waits for the guest and leaves the later stages what they need of it.
func (d *Driver) handOver(ctx context.Context, machine *Machine, p plan) error {
	began := time.Now()
	end := d.Log.Section("sardine_boot", "Machine "+machine.Name)
	defer end()
	booted := d.phase("boot")
	login := machine.Login
	err := d.waitReady(ctx, machine, login, p.settings)
	if err == nil {
		booted()
		err = d.mountCache(ctx, machine.Guest, p.settings.GuestCacheDir)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.dropCache(machine.Guest)
		}
		return err
	}
	if err := guestssh.SaveLogin(d.jobDir(p.dirs), login); err != nil {
		return err
	}
	from := "boot"
	if machine.Guest.Resumed() {
		from = "snapshot"
		d.Log.Say("Guest goes on from a snapshot of %s", machine.Guest.SnapshotTime().Format(time.RFC3339))
	}
	d.metrics.Count("sardine_starts_total", 1, "from", from)
	d.Log.Say("Guest ready at %s as %s (%s)", machine.Guest.Record().Address, login.User, joblog.Seconds(time.Since(began)))
	if err := guestshell.MakeDirs(ctx, machine.Guest, p.settings, d.Log); err != nil {
		return err
	}
	end()
	if err := guestshell.RunPrepareScript(ctx, machine.Guest, p.settings, d.Job.Variables, d.Log); err != nil {
		return err
	}
	// If no script follows, the job was cancelled.
	d.save(d.jobDir(p.dirs), outcome.Outcome{Result: outcome.Cancelled})
	return nil
}

// record is what the machine's domain will say of the job.
func (d *Driver) record(now time.Time) record.Record {
	return record.Record{
		Job:     d.Job.ID,
		Project: d.Job.Project,
		Server:  d.Job.Server,
		Created: now.UTC().Truncate(time.Second),
		Expires: now.Add(d.Job.Timeout + expiryGrace).UTC().Truncate(time.Second),
	}
}

// sweep removes what no job owns any more. That it cannot be done is no reason
// for this job to fail, nor to wait long: the next one goes on where this one stopped.
func (d *Driver) sweep(ctx context.Context, host *vm.Host, dirs config.Dirs) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	swept, err := Sweep(ctx, host, dirs, SweepOptions{Now: time.Now(), Metrics: &d.metrics})
	for _, s := range swept {
		d.admin().Warn("swept a machine that no job owns", "swept", s.Machine, "reason", s.Reason)
	}
	if err != nil {
		d.admin().Warn("sweep failed", "error", err)
	}
}

// clearWay removes the machine of an earlier attempt at the same job whose
// cleanup failed.
func (d *Driver) clearWay(ctx context.Context, host *vm.Host, dirs config.Dirs) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := vm.Remove(ctx, host, d.Job.VMName(), dirs.Overlays, d.jobDir(dirs)); err != nil {
		return fmt.Errorf("remove what an earlier attempt left: %w", err)
	}
	return nil
}

// undo removes the machine after a failure; in a hurry if it was told to end.
func (d *Driver) undo(ctx context.Context, host *vm.Host, dirs config.Dirs) error {
	timeout := removeTimeout
	if ctx.Err() != nil {
		timeout = undoTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	err := vm.Remove(ctx, host, d.Job.VMName(), dirs.Overlays, d.jobDir(dirs))
	if errors.Is(err, virt.ErrDisconnected) { // which may be why prepare failed
		if host, err = OpenHost(ctx, d.Settings); err == nil {
			defer host.Close()
			err = vm.Remove(ctx, host, d.Job.VMName(), dirs.Overlays, d.jobDir(dirs))
		}
	}
	if err != nil {
		return fmt.Errorf("remove the machine (cleanup will try again): %w", err)
	}
	return nil
}

// waitReady gives the guest the time that the settings allow it.
func (d *Driver) waitReady(ctx context.Context, machine *Machine, login guestssh.Login, settings config.Resolved) error {
	if machine.Guest.Resumed() {
		return d.resumed(ctx, machine)
	}
	timeout := settings.Timeout
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := machine.Guest.WaitReady(ctx, login)
	if errors.Is(err, vm.ErrNoAnswer) {
		return fmt.Errorf("%w (waited %s: the setting timeout)", err, timeout)
	}
	return err
}
