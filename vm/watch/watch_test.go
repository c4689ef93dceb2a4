package watch

import (
	"errors"
	"testing"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/virt"
)

// What an event means depends on whether a command runs: a guest may reboot while it boots.
func TestErrorOf(t *testing.T) {
	for _, test := range []struct {
		event   virt.Event
		running bool
		want    error
	}{
		{virt.PoweredOff, true, errdefs.ErrPoweredOff},
		{virt.PoweredOff, false, errdefs.ErrPoweredOff},
		{virt.Rebooted, true, errdefs.ErrRebooted},
		{virt.Rebooted, false, nil},
		{virt.Destroyed, true, errdefs.ErrGuestStopped},
		{virt.Died, true, errdefs.ErrGuestStopped},
		{virt.Crashed, false, errdefs.ErrGuestStopped},
	} {
		err := Watch{Running: test.running}.errorOf(test.event)
		if !errors.Is(err, test.want) || test.want == errdefs.ErrGuestStopped && errors.Is(err, errdefs.ErrPoweredOff) {
			t.Errorf("%v, running %v: got %v, want %v", test.event, test.running, err, test.want)
		}
	}
	if !errors.Is(errdefs.ErrPoweredOff, errdefs.ErrGuestStopped) || errors.Is(errdefs.ErrRebooted, errdefs.ErrGuestStopped) {
		t.Error("a guest that powered off has stopped, and one that rebooted has not")
	}
}

// libvirt removes a domain before its last event arrives: the event still decides.
func TestReason(t *testing.T) {
	events := make(chan virt.Event, 2)
	events <- virt.Rebooted
	events <- virt.PoweredOff
	w := Watch{Running: true}
	if err := w.reason(t.Context(), events, errdefs.ErrGuestStopped); !errors.Is(err, errdefs.ErrPoweredOff) {
		t.Errorf("got %v", err)
	}
	if err := w.reason(t.Context(), nil, errdefs.ErrGuestStopped); err != errdefs.ErrGuestStopped {
		t.Errorf("without an event: got %v", err)
	}
}
