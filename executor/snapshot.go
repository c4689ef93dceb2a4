package executor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

// A guest that resumes from a snapshot was ready when that was made. It has resumeMin, or
// the part 1/resumePart of timeout if that is more.
const (
	resumeMin  = 30 * time.Second
	resumePart = 10
)

func resumeTimeout(timeout time.Duration) time.Duration { return max(resumeMin, timeout/resumePart) }

// errNotResumed says that a machine did not become ready after its snapshot.
var errNotResumed = errors.New("the machine did not resume from its snapshot")

// snapshot makes the snapshot for spec unless there is one. If there can be none, the
// machine boots.
func (o *FetchAndCloneOptions) snapshot(ctx context.Context, host *virt.Host, spec vm.Spec, login guestssh.Login) error {
	end := func() {}
	err := vm.MakeSnapshot(ctx, host, spec, login, o.Settings.Timeout, func() {
		end = o.begin("snapshot", "sardine_snapshot", "Booting a machine for a snapshot, from which this and later jobs start")
	})
	end()
	if errors.Is(err, snapshot.ErrNone) {
		o.detail("the machine boots: " + err.Error())
		return nil
	}
	if errors.Is(err, errdefs.ErrNoAnswer) {
		return fmt.Errorf("%w (waited %s: the setting timeout)", err, o.Settings.Timeout)
	}
	return err
}

// waitResumed waits for a guest that resumes from a snapshot. If it does not answer, the
// error is an [errNotResumed], and the snapshot is not used again.
func (d *Driver) waitResumed(ctx context.Context, machine instance, timeout time.Duration) error {
	waiting, cancel := context.WithTimeout(ctx, resumeTimeout(timeout))
	defer cancel()
	err := machine.WaitReady(waiting, machine.Info().Login)
	if err == nil || ctx.Err() != nil || errors.Is(err, errdefs.ErrDisconnected) {
		return err
	}
	return errors.Join(fmt.Errorf("%w: %w", errNotResumed, err), machine.DistrustSnapshot(err))
}
