package executor

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/vm/errdefs"
)

const (
	// LibvirtTimeout bounds requests to libvirt that start no machine.
	LibvirtTimeout = 20 * time.Second
	// removeTimeout bounds the removal of a machine: libvirt kills a QEMU that ignores
	// SIGTERM after 15 s.
	removeTimeout = 60 * time.Second
	// sweepTimeout bounds the sweep at the start of prepare.
	sweepTimeout = 3 * time.Second
	// connectTimeout bounds the login to a guest that was ready before: as long as a guest
	// may stand still while a script runs.
	connectTimeout = time.Minute
	// abortTimeout bounds the removal of a machine after a signal: a stage then has
	// two seconds in all. cleanup does the rest.
	abortTimeout = 1500 * time.Millisecond
	// reconnectPause is the wait for a libvirt daemon that restarts.
	reconnectPause = 500 * time.Millisecond
	// expiryGrace is the time after the timeout of a job until sweep removes its
	// machine: the runner's own cleanup comes first.
	expiryGrace = time.Hour
)

// A Driver runs the stages of one job.
type Driver struct {
	Version  string
	Settings *config.Settings
	Job      job.Job
	Log      *joblog.Log
	// Admin is the administrator's log; nil for none.
	Admin *slog.Logger
	// Local: see [policy.Policy].
	Local bool
	// OneLog puts standard error of a script on its standard output, so that their order
	// remains. PowerShell keeps them apart.
	OneLog bool
	// PrepareOnly: another program runs the scripts of the job, and does not tell how it
	// ended. The machine expires after the timeout of the job, and prepare does not sweep.
	PrepareOnly bool
	// AuthorizedKeys may log in to the guest, too: lines as in authorized_keys(5).
	AuthorizedKeys []string

	machine Machine // that prepare has made
	metrics metrics.Changes
	newHost func(context.Context) (machineHost, error) // of tests; nil for libvirt
}

// WriteMetrics adds the metrics of this process to the file metrics_textfile.
func (d *Driver) WriteMetrics() error { return d.metrics.Write(d.Settings.Defaults.MetricsTextfile) }

// AddMetrics adds the metrics so far to those of a service, unless there is a file for them.
func (d *Driver) AddMetrics(live *metrics.Live) error {
	if d.Settings.Defaults.MetricsTextfile != "" {
		return d.WriteMetrics()
	}
	live.Add(&d.metrics)
	return nil
}

// A Machine is what other programs need to know about the machine of a job.
type Machine struct {
	Name string
	// Address is host:port of the guest's SSH server as seen from this host.
	Address string
	// User of the login.
	User string
}

// Machine returns the machine that [Driver.Prepare] has made.
func (d *Driver) Machine() Machine { return d.machine }

// phase starts to measure a phase of the job; end stops it.
func (d *Driver) phase(name string) (end func()) {
	began := time.Now()
	return func() { d.metrics.Observe(name, time.Since(began)) }
}

// updateGauges sets the gauges of the host. A failure is logged and does not fail the
// stage.
func (d *Driver) updateGauges(ctx context.Context, host machineHost) {
	if d.Settings.Defaults.MetricsTextfile == "" {
		return
	}
	if err := host.UpdateGauges(ctx, &d.metrics); err != nil {
		d.admin().Warn("metrics are incomplete", "error", err)
	}
}

// configOutput is the output of the config stage.
type configOutput struct {
	Driver    driverInfo `json:"driver"`
	BuildsDir string     `json:"builds_dir"`
	CacheDir  string     `json:"cache_dir"`
	Shell     string     `json:"shell"`
	// JobEnv is the environment of later stages, not of the job.
	JobEnv map[string]string `json:"job_env"`
}

type driverInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Config is the config stage: it tells GitLab Runner the directories and the shell of
// the guest.
func (d *Driver) Config(stdout io.Writer) error {
	settings := d.Settings.For(d.Job.Image)
	return json.NewEncoder(stdout).Encode(configOutput{
		Driver:    driverInfo{Name: "gitlab-sardine-executor", Version: d.Version},
		BuildsDir: settings.GuestBuildsDir,
		CacheDir:  settings.GuestCacheDir,
		Shell:     guestshell.For(settings.Shell).GitLab,
		JobEnv:    map[string]string{job.MachineEnv: d.Job.VMName()},
	})
}

// admin returns the administrator's log with the attributes of the job.
func (d *Driver) admin() *slog.Logger {
	if d.Admin == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Admin.With("job", d.Job.ID, "project", d.Job.Project, "machine", d.Job.VMName())
}

// openHost connects to the host of the job's machine.
func (d *Driver) openHost(ctx context.Context, dirs config.Dirs) (machineHost, error) {
	if d.newHost != nil {
		return d.newHost(ctx)
	}
	host, err := OpenHost(ctx, d.Settings)
	if err != nil {
		return nil, err
	}
	return &libvirtHost{host, dirs, d.Job.VMName()}, nil
}

// jobDir is the directory of the job's machine.
func (d *Driver) jobDir(dirs config.Dirs) string { return filepath.Join(dirs.Jobs, d.Job.VMName()) }

// Cleanup is the cleanup stage. It removes the job's machine, unless the machine is
// kept after a failure. A missing machine is not an error.
//
// GitLab Runner does not retry cleanup. If libvirt's daemon restarts, Cleanup retries.
func (d *Driver) Cleanup(ctx context.Context) error {
	defer d.phase("cleanup")()
	dirs, err := d.Settings.Dirs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	for restarted := false; ; {
		err := d.cleanup(ctx, dirs)
		// Without a directory there never was a machine, so there is nothing to remove.
		restarted = restarted || errors.Is(err, errdefs.ErrDisconnected) || errors.Is(err, errdefs.ErrUnreachable) && isDir(d.jobDir(dirs))
		if err == nil || !restarted {
			return err
		}
		d.admin().Warn("cleanup retries", "error", err)
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
			return err
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (d *Driver) cleanup(ctx context.Context, dirs config.Dirs) error {
	host, err := d.openHost(ctx, dirs)
	if err != nil {
		return err
	}
	defer host.Close()
	o, err := outcome.Load(d.jobDir(dirs))
	if err != nil {
		d.admin().Warn("cleanup does not know how the job ended", "error", err)
	}
	kept, err := d.keep(ctx, host, o)
	if err != nil {
		return err
	}
	if !kept {
		d.flushCache(ctx, host)
		if err := host.Remove(ctx, false); err != nil {
			return err
		}
	}
	if o != nil {
		d.metrics.Count("sardine_jobs_total", 1, "result", o.Result)
	}
	d.updateGauges(ctx, host)
	return nil
}

// policy is what the administrator allows the job.
func (d *Driver) policy() policy.Policy {
	return policy.Policy{Settings: d.Settings, Job: d.Job, Local: d.Local}
}
