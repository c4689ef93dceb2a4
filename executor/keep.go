package executor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
)

// beginStage records for cleanup that a stage has begun; end records how it ended. In
// between the stage counts as failed, because the driver may be killed. After a failure
// end tells the author how to log in.
func (d *Driver) beginStage(dirs config.Dirs, stage string) (end func(context.Context, error)) {
	dir := d.jobDir(dirs)
	before, _ := outcome.Load(dir) // an unreadable one decides nothing
	o, decides := outcome.Begin(before, stage)
	if !decides || !d.save(dir, o) {
		return func(context.Context, error) {}
	}
	return func(ctx context.Context, err error) {
		o.Result = outcome.ResultOf(ctx, err)
		if o.Result != outcome.Success && o.Result != outcome.Cancelled {
			if keep, err := d.policy().KeepTime(d.Settings.For(d.Job.Image)); err == nil {
				o.Keep = keep
			}
		}
		if d.save(dir, o) && o.Keep > 0 {
			d.Log.Say("The machine is kept for %s after the job. On %s: gitlab-sardine-executor ssh %s", o.Keep, joblog.Hostname(), d.Job.ID)
		}
	}
}

// save records the outcome so far and reports whether it could.
func (d *Driver) save(dir string, o outcome.Outcome) bool {
	err := o.Save(dir)
	if err != nil {
		d.admin().Warn("cleanup will not know how the job ended", "error", err)
	}
	return err == nil
}

// keep sets the new expiry of a failed job's machine, and reports whether the machine is
// kept. Sweep removes it.
func (d *Driver) keep(ctx context.Context, host machineHost, o *outcome.Outcome) (bool, error) {
	if o == nil || o.Keep == 0 {
		return false, nil
	}
	until := time.Now().Add(o.Keep)
	err := host.Keep(ctx, until)
	if errors.Is(err, errdefs.ErrNoDomain) {
		return false, nil
	}
	d.admin().Info("the machine of a failed job is kept", "until", until)
	return err == nil, err
}

// saveConsole keeps the console log of a guest that did not start, for the administrator.
// The job's log has its last lines.
func (d *Driver) saveConsole(dirs config.Dirs, cause error) {
	if !errors.Is(cause, errdefs.ErrNoAnswer) && !errors.Is(cause, errdefs.ErrGuestStopped) && !errors.Is(cause, guestssh.ErrLogin) {
		return
	}
	from, err := os.Open(filepath.Join(d.jobDir(dirs), vm.ConsoleFile))
	if err != nil {
		return // the machine has no serial port
	}
	defer from.Close()
	path, err := console.Keep(from, dirs.Consoles, d.Job.VMName())
	d.admin().Info("console log of a guest that did not start", "path", path, "error", err)
}
