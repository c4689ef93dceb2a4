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
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/executor/tools"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
)

// A plan is the input of prepare: settings and the choices of the job.
type plan struct {
	ref      oci.Reference
	settings config.Resolved
	policies []oci.PullPolicy
	dirs     config.Dirs
	takeIdle bool
}

// plan checks the choices of the job.
func (d *Driver) plan() (p plan, err error) {
	rules := d.policy()
	if p.ref, p.settings, err = rules.Image(); err != nil {
		return p, err
	}
	if p.policies, err = rules.PullPolicies(p.settings); err != nil {
		return p, err
	}
	if _, err = rules.KeepTime(p.settings); err != nil {
		return p, err
	}
	p.takeIdle = true
	p.dirs, err = d.Settings.Dirs()
	return p, err
}

// Prepare is the prepare stage: it pulls the image, starts the machine and waits for the
// guest. If it fails, it removes the machine.
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
	if names := joblog.List(d.Job.Services); names != "" {
		d.Log.Warn("services: is ignored (%s): GitLab Runner starts no services for a custom executor", names)
	}
	host, err := d.openHost(ctx, p.dirs)
	if err != nil {
		return err
	}
	defer host.Close()
	if !d.PrepareOnly {
		d.sweep(ctx, host)
	}
	if err := d.removeStale(ctx, host); err != nil {
		return err
	}
	defer func() {
		if err == nil { // a signal may have come at the end
			err = context.Cause(ctx)
		}
		if err != nil {
			d.saveConsole(p.dirs, err)
			err = errors.Join(err, d.removeFailed(ctx, host, p.dirs))
		}
	}()
	defer d.updateGauges(ctx, host)
	err = d.prepareMachine(ctx, host, p)
	switch {
	case errors.Is(err, errNotResumed):
		p.settings.MemorySnapshot = false
		err = d.retry(ctx, host, p, err, "booting a machine instead")
	case errors.Is(err, errNetworkLost):
		err = d.retry(ctx, host, p, err, "starting the machine once more")
	}
	return err
}

// prepareMachine starts the job's machine and prepares its guest.
func (d *Driver) prepareMachine(ctx context.Context, host machineHost, p plan) error {
	machine, err := d.start(ctx, host, p)
	if err != nil {
		return beforeReady(err)
	}
	defer machine.Close()
	return d.finishPrepare(ctx, machine, p)
}

// errNetworkLost says that the guest's user network ended before the guest was ready.
var errNetworkLost = errors.New("the machine lost its network before its guest was ready")

// beforeReady marks the error of a machine whose guest is not ready yet.
func beforeReady(err error) error {
	if errors.Is(err, errdefs.ErrNetworkEnded) {
		return fmt.Errorf("%w: %w", errNetworkLost, err)
	}
	return err
}

// retry replaces a machine that failed because of cause, before anything of the job has run
// in it. It is called once for a job.
func (d *Driver) retry(ctx context.Context, host machineHost, p plan, cause error, how string) error {
	p.takeIdle = false
	d.Log.Warn("%s: %s", joblog.OneLine(cause.Error()), how)
	d.admin().Warn(how, "reason", cause)
	if err := d.removeStale(ctx, host); err != nil {
		return err
	}
	return d.prepareMachine(ctx, host, p)
}

// start creates and starts the job's machine.
func (d *Driver) start(ctx context.Context, host machineHost, p plan) (instance, error) {
	cpus, err := host.CPUs(ctx)
	if err != nil {
		return nil, err
	}
	size, err := d.policy().Size(p.settings, cpus, d.Log)
	if err != nil {
		return nil, err
	}
	admit := AdmissionPolicy(d.Settings)
	admit.Waiting = func(reason string) {
		d.Log.Say("Waiting for room on this host: %s", reason)
		d.admin().Info("waiting for room", "reason", reason)
	}
	progress := d.Log.Progress("Pulling")
	defer d.countPull(progress)
	return host.Start(ctx, FetchAndCloneOptions{
		Image: p.ref,
		Pull: PullLimits(d.Settings, p.settings, store.PullOptions{
			Policies:    p.policies,
			Credentials: registry.Credentials{AuthConfig: d.Job.AuthConfig(), Accounts: d.Job.Accounts},
			Progress:    progress,
		}),
		Dirs:      p.dirs,
		Name:      d.Job.VMName(),
		Settings:  p.settings,
		Size:      size,
		Admission: admit,
		Cache:     d.cache(p.settings, p.dirs),
		Record:    d.record(time.Now()),
		Version:   d.Version,
		TakeIdle:  p.takeIdle,
		Log:       d.Log,
		Phase:     d.phase,
		Detail:    func(text string) { d.admin().Debug(text) },
	})
}

// AdmissionPolicy returns the conditions for another machine on the host.
func AdmissionPolicy(s *config.Settings) admission.Policy {
	return admission.Policy{
		Slots:   s.Defaults.Slots,
		Reserve: int64(s.Defaults.HostReserve),
		Timeout: time.Duration(s.Defaults.QueueTimeout),
	}
}

// countPull counts a pull that transferred anything.
func (d *Driver) countPull(progress *joblog.Lines) {
	if moved := progress.Moved(); moved > 0 {
		d.metrics.Count("sardine_pulls_total", 1)
		d.metrics.Count("sardine_pulled_bytes_total", float64(moved))
	}
}

// finishPrepare waits for the guest, prepares it, and records what later stages need.
func (d *Driver) finishPrepare(ctx context.Context, machine instance, p plan) error {
	began := time.Now()
	end := d.Log.Section("sardine_boot", "Machine "+d.Job.VMName())
	defer end()
	booted := d.phase("boot")
	hint := policy.HintFor(ctx, p.settings, d.Job.Server)
	limit := began.Add(p.settings.Timeout)
	err := d.waitReady(ctx, machine, p.settings.Timeout)
	info := machine.Info()
	if err == nil {
		booted()
		hint.Tell(d.Log)
		err = guestshell.Within(ctx, limit, func(ctx context.Context) error { return d.mountCache(ctx, machine, p.settings.GuestCacheDir) })
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, errNetworkLost) {
			d.dropCache(machine)
		}
		return err
	}
	if err := guestssh.SaveLogin(d.jobDir(p.dirs), info.Login); err != nil {
		return err
	}
	from := "boot"
	switch {
	case info.Idle:
		from = "idle"
		d.Log.Say("The machine was ready before the job")
	case info.resumed():
		from = "snapshot"
		d.Log.Say("Guest resumed from a snapshot of %s", info.SnapshotTime.Format(time.RFC3339))
	}
	d.metrics.Count("sardine_starts_total", 1, "from", from)
	settled := info.Settled && info.Cache.Mode == "" // a cache may be in the way of the directories
	err = guestshell.Within(ctx, limit, func(ctx context.Context) error {
		return guestshell.SettleFor(ctx, machine, p.settings, settled, d.jobDir(p.dirs), d.AuthorizedKeys, d.Log)
	})
	if err != nil {
		return err
	}
	d.Log.Say("Guest ready at %s as %s (%s)", info.Address, info.Login.User, joblog.Seconds(time.Since(began)))
	if info.Tools {
		if err := tools.Note(d.jobDir(p.dirs)); err != nil {
			return err
		}
	}
	end()
	err = guestshell.Within(ctx, limit, func(ctx context.Context) error {
		return guestshell.RunPrepareScript(ctx, machine, p.settings, d.Job.Variables, d.Log)
	})
	if err != nil {
		return err
	}
	d.machine = Machine{Name: d.Job.VMName(), Address: info.Address, User: info.Login.User}
	// If no script follows, the job was cancelled.
	result := outcome.Cancelled
	if d.PrepareOnly {
		result = outcome.Unknown
	}
	d.save(d.jobDir(p.dirs), outcome.Outcome{Result: result})
	return nil
}

// record returns the record of the job for the machine's domain.
func (d *Driver) record(now time.Time) record.Record {
	grace := expiryGrace
	if d.PrepareOnly {
		grace = 0
	}
	return record.Record{
		Job:     d.Job.ID,
		Project: d.Job.Project,
		Server:  d.Job.Server,
		Created: now.UTC().Truncate(time.Second),
		Expires: now.Add(d.Job.Timeout + grace).UTC().Truncate(time.Second),
	}
}

// sweep removes machines and files that no job owns. A failure does not fail the job,
// and the next job continues after a timeout.
func (d *Driver) sweep(ctx context.Context, host machineHost) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	swept, err := host.Sweep(ctx, &d.metrics)
	for _, s := range swept {
		d.admin().Warn("swept a machine that no job owns", "swept", s.Machine, "reason", s.Reason)
	}
	if err != nil {
		d.admin().Warn("sweep failed", "error", err)
	}
}

// removeStale removes the machine of an earlier attempt at the same job, if its cleanup
// failed.
func (d *Driver) removeStale(ctx context.Context, host machineHost) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := host.Remove(ctx, true); err != nil {
		return fmt.Errorf("remove the machine of an earlier attempt: %w", err)
	}
	return nil
}

// removeFailed removes the machine after a failure, within [abortTimeout] after a signal.
func (d *Driver) removeFailed(ctx context.Context, host machineHost, dirs config.Dirs) error {
	timeout := removeTimeout
	if ctx.Err() != nil {
		timeout = abortTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	err := host.Remove(ctx, false)
	if errors.Is(err, errdefs.ErrDisconnected) { // perhaps the reason of the failure
		if host, err = d.openHost(ctx, dirs); err == nil {
			defer host.Close()
			err = host.Remove(ctx, false)
		}
	}
	if err != nil {
		return fmt.Errorf("remove the machine (cleanup will try again): %w", err)
	}
	return nil
}

// waitReady waits for the guest, for timeout at most.
func (d *Driver) waitReady(ctx context.Context, machine instance, timeout time.Duration) error {
	info := machine.Info()
	if info.resumed() {
		return d.waitResumed(ctx, machine, timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := beforeReady(machine.WaitReady(ctx, info.Login))
	if errors.Is(err, errdefs.ErrNoAnswer) || errors.Is(err, errdefs.ErrNoBoot) {
		return fmt.Errorf("%w (waited %s: the setting timeout)", err, timeout)
	}
	return err
}
