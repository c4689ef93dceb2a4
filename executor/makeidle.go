package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/tools"
	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

// ErrEvicted says that a machine had to give way to a job before it was ready.
var ErrEvicted = errors.New("the idle machine gave way to a job")

// MakeIdle makes a machine that waits for a job: it pulls the image, starts the machine as
// [FetchAndClone] does, waits until its guest is ready as prepare does, and offers it. o.Name
// is one of [idle.NewName]. If MakeIdle fails, it removes the machine; the error is an
// [admission.ErrNoRoom] if the host has no room for it now.
func MakeIdle(ctx context.Context, host *virt.Host, o FetchAndCloneOptions) (err error) {
	o.Record.Idle, o.Admission.Idle, o.Cache = true, true, nil
	defer func() {
		if err != nil {
			ctx, cancel := rollback.Context(ctx)
			defer cancel()
			err = errors.Join(err, removal.Remove(ctx, host, o.Name, o.place()))
		}
	}()
	made, err := FetchAndClone(ctx, host, o)
	if err != nil {
		return err
	}
	defer made.Guest.Close()
	defer func() {
		// What evicts a machine removes its files, too.
		if _, gone := os.Stat(o.place().JobDir); err != nil && errors.Is(gone, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrEvicted, err)
		}
	}()
	timeout := o.Settings.Timeout
	if made.Guest.Resumed() {
		timeout = resumeTimeout(timeout)
	}
	var warnings bytes.Buffer
	err = guestshell.Within(ctx, time.Now().Add(timeout), func(ctx context.Context) error {
		if err := made.Guest.WaitReady(ctx, made.Login); err != nil {
			return fmt.Errorf("wait for the guest of %s: %w", o.Image, err)
		}
		return guestshell.Settle(ctx, made.Guest, o.Settings, o.place().JobDir, joblog.New(&warnings))
	})
	if err != nil && made.Guest.Resumed() && ctx.Err() == nil && !errors.Is(err, errdefs.ErrGuestStopped) {
		err = errors.Join(err, made.Guest.DistrustSnapshot(err))
	}
	if err != nil {
		return err
	}
	// Warnings are for the log of a job, which repeats what gave them.
	return o.offer(ctx, host, made, warnings.Len() == 0)
}

// offer writes what jobs need, and offers the machine to them.
func (o *FetchAndCloneOptions) offer(ctx context.Context, host *virt.Host, made *Instance, settled bool) error {
	at := o.place()
	// A job that needs the room removes the machine with the lock held.
	locked, err := dirlock.Try(at.JobDir)
	if err != nil || locked == nil {
		return errors.Join(ErrEvicted, err)
	}
	defer locked.Unlock()
	memories, err := host.Memories(ctx)
	if err != nil {
		return err
	}
	if _, runs := memories[o.Name]; !runs {
		return ErrEvicted
	}
	if made.Guest.HasTools() {
		if err := tools.Note(at.JobDir); err != nil {
			return err
		}
	}
	state := idle.State{
		Kind: made.Kind, Image: o.Image.String(), Memory: memories[o.Name], Tools: made.Guest.HasTools(), Settled: settled, Made: time.Now().UTC(),
	}
	if err := errors.Join(guestssh.SaveLogin(at.JobDir, made.Login), state.Save(at.Storage(), o.Name)); err != nil {
		return err
	}
	return idle.Offer(at.Storage(), o.Name)
}
