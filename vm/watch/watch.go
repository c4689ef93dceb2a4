// Package watch notices that a machine ends, reboots or stands still: by libvirt's events,
// its console and its network.
package watch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// eventGrace is how long a watch waits for the event that says why a guest stopped.
	eventGrace = time.Second
	// stillTime is the time without any CPU time after which a guest stands still.
	stillTime = time.Second
)

// Alive returns [errdefs.ErrGuestStopped] if the guest does not run any more; other errors are libvirt's.
func Alive(ctx context.Context, dom *virt.Domain) error {
	reason, err := dom.StopReason(ctx)
	if err != nil {
		return err
	}
	if reason != "" {
		return fmt.Errorf("%w: %s", errdefs.ErrGuestStopped, reason)
	}
	return nil
}

// StandsStill reports whether the guest is paused, or its QEMU does nothing: it is stopped,
// or hangs in the host's storage.
func StandsStill(ctx context.Context, dom *virt.Domain) bool {
	before, paused, err := dom.Progress(ctx)
	if paused || err != nil {
		return paused
	}
	select {
	case <-time.After(stillTime):
	case <-ctx.Done():
		return false
	}
	after, paused, err := dom.Progress(ctx)
	return paused || err == nil && after == before
}

// A Network is that of the guest.
type Network interface {
	// Ended returns an error if the network has ended.
	Ended() error
}

// A Watch cancels a wait when the guest has stopped or cannot be reached any more.
type Watch struct {
	Domain  *virt.Domain
	Network Network             // nil if another process started the machine
	Console *console.PanicWatch // nil: not watched
	Poll    time.Duration
	Running bool // a command: its guest must not reboot
}

// Run returns when ctx ends. It ignores errors of libvirt: the daemon may be restarting.
func (w Watch) Run(ctx context.Context, cancel context.CancelCauseFunc) {
	var events <-chan virt.Event
	if w.Network == nil || !w.Running { // prepare's own commands are short
		from, stop, err := w.Domain.Events(ctx)
		if err == nil {
			defer stop()
			events = from
		}
	}
	disconnected := false
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if err := w.errorOf(e); err != nil {
				cancel(err)
				return
			}
			continue
		case <-time.After(w.Poll):
		}
		if err := Alive(ctx, w.Domain); errors.Is(err, errdefs.ErrGuestStopped) {
			cancel(w.reason(ctx, events, err))
			return
		}
		if w.Console != nil && w.Console.Seen() {
			cancel(fmt.Errorf("%w: its kernel panicked", errdefs.ErrGuestStopped))
			return
		}
		if w.Network == nil {
			continue
		}
		// Seen twice: the network of a guest that has just stopped ends, too.
		if err := w.Network.Ended(); err != nil && disconnected {
			cancel(err)
			return
		} else {
			disconnected = err != nil
		}
	}
}

// reason returns the error of the event that says why the guest stopped, which may come
// after libvirt has removed the domain. stopped is the error without one.
func (w Watch) reason(ctx context.Context, events <-chan virt.Event, stopped error) error {
	grace := time.After(eventGrace)
	for {
		select {
		case e := <-events:
			if err := w.errorOf(e); err != nil && e != virt.Rebooted {
				return err
			}
		case <-grace:
			return stopped
		case <-ctx.Done():
			return stopped
		}
	}
}

// errorOf returns the error of an event; nil if the wait goes on.
func (w Watch) errorOf(e virt.Event) error {
	switch e {
	case virt.PoweredOff:
		return errdefs.ErrPoweredOff
	case virt.Rebooted:
		if w.Running {
			return errdefs.ErrRebooted
		}
		return nil
	}
	return fmt.Errorf("%w: %s", errdefs.ErrGuestStopped, e)
}
