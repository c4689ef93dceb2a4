package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

// resumeTimeout is how long a guest may take to answer that goes on from a snapshot:
// it was ready already.
const resumeTimeout = 30 * time.Second

// errNotResumed: a machine that went on from its snapshot did not become ready.
var errNotResumed = errors.New("the machine did not go on from its snapshot")

// snapshot makes the snapshot of the machine that spec describes unless it is there.
// That there can be none is no reason for the job to fail: it boots.
func (o *FetchAndCloneOptions) snapshot(ctx context.Context, host *vm.Host, spec vm.Spec, login guestssh.Login) error {
	timeout := o.Settings.Timeout
	end := func() {}
	err := vm.MakeSnapshot(ctx, host, spec, login, timeout, func() {
		end = o.begin("snapshot", "sardine_snapshot", "Booting a machine for a snapshot, from which this and later jobs start")
	})
	end()
	if errors.Is(err, snapshot.ErrNone) {
		o.detail("the machine boots: " + err.Error())
		return nil
	}
	if errors.Is(err, vm.ErrNoAnswer) {
		return fmt.Errorf("%w (waited %s: the setting timeout)", err, timeout)
	}
	return err
}

// gaugeSnapshots counts the snapshots.
func (d *Driver) gaugeSnapshots(dirs config.Dirs) error {
	count, size, err := snapshot.Usage(dirs.Snapshots())
	if err != nil {
		return err
	}
	d.metrics.Set("sardine_snapshots", float64(count))
	d.metrics.Set("sardine_snapshot_bytes", float64(size))
	return nil
}

// resumed waits for a guest that goes on from a snapshot. If it does not, the error is
// an [errNotResumed], and nobody uses that snapshot any more.
func (d *Driver) resumed(ctx context.Context, machine *Machine) error {
	waiting, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	err := machine.Guest.WaitReady(waiting, machine.Login)
	if err == nil || ctx.Err() != nil || errors.Is(err, virt.ErrDisconnected) {
		return err
	}
	return errors.Join(fmt.Errorf("%w: %w", errNotResumed, err), machine.Guest.DistrustSnapshot(err))
}

// prepareAnew prepares a machine that boots, in place of one that did not go on from
// its snapshot because of cause.
func (d *Driver) prepareAnew(ctx context.Context, host *vm.Host, p plan, cause error) error {
	d.Log.Warn("%s: a machine boots in its place", joblog.OneLine(cause.Error()))
	if err := d.clearWay(ctx, host, p.dirs); err != nil {
		return err
	}
	p.settings.MemorySnapshot = false
	return d.prepareMachine(ctx, host, p)
}
