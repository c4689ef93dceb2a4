package virt

import (
	"context"
	"fmt"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// An Event is what happened to a running domain.
type Event int

const (
	// Rebooted: the guest reset its machine, which continues to run.
	Rebooted Event = iota + 1
	// PoweredOff: the guest shut its machine down.
	PoweredOff
	// Destroyed: libvirt was asked to destroy the domain.
	Destroyed
	// Died: QEMU died, or got a signal.
	Died
	// Crashed: the guest's kernel panicked.
	Crashed
)

func (e Event) String() string {
	return map[Event]string{
		Rebooted: "it rebooted", PoweredOff: "it powered off", Destroyed: "it was destroyed by a request to libvirt",
		Died: "its QEMU died", Crashed: "it crashed (guest panic)",
	}[e]
}

// eventBuffer is the number of events that may wait for their reader; a domain has few.
const eventBuffer = 16

// loopPause follows an error of the event loop, which would otherwise repeat at once.
const loopPause = 100 * time.Millisecond

// How often, and how long apart, [Domain.Events] tries while libvirt still stops the last
// subscription.
const (
	trackedTries = 40
	trackedPause = 50 * time.Millisecond
)

// startLoop starts libvirt's event loop. It must run before a connection is opened that is
// to have events.
var startLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return clean(err)
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(loopPause)
			}
		}
	}()
	return nil
})

// Events reports what happens to the domain from now on, until stop is called. A domain
// that was shut down has several events.
func (d *Domain) Events(ctx context.Context) (events <-chan Event, stop func(), err error) {
	if err := startLoop(); err != nil {
		return nil, nil, fmt.Errorf("start the event loop of libvirt: %w", err)
	}
	s, err := await(ctx, &d.calls, "watch domain "+d.name, d.subscribe)
	if err != nil {
		return nil, nil, err
	}
	return s.events, s.stop, nil
}

// A subscription is a registration for events.
type subscription struct {
	conn   *libvirt.Connect
	ids    []int
	events chan Event
	once   sync.Once
	// signaled: QEMU ends because of a signal, not because of its guest. Only the event loop
	// uses it.
	signaled bool
}

// subscribe tries again while an earlier subscription to the domain is being stopped: libvirt
// refuses a second one ("event callback already tracked").
func (d *Domain) subscribe() (*subscription, error) {
	for tries := 1; ; tries++ {
		s, err := d.subscribeOnce()
		if !isCode(err, libvirt.ERR_INVALID_ARG) || tries == trackedTries {
			return s, err
		}
		time.Sleep(trackedPause)
	}
}

func (d *Domain) subscribeOnce() (*subscription, error) {
	conn, err := d.dom.DomainGetConnect()
	if err != nil {
		return nil, err
	}
	// This one stays until the connection closes. If the last registration of a connection ends
	// while libvirt reports an event, and another event comes, libvirt reports none any more
	// (virObjectEventStateFlush of 9.0 leaves that one in the queue, and only the first event of
	// a queue starts the timer). If it fails, so does the next one.
	d.keepEvents.Do(func() {
		_, _ = conn.DomainEventWatchdogRegister(nil, func(*libvirt.Connect, *libvirt.Domain, *libvirt.DomainEventWatchdog) {})
	})
	s := &subscription{conn: conn, events: make(chan Event, eventBuffer)}
	id, err := conn.DomainEventLifecycleRegister(d.dom, func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		s.report(s.lifecycle(e))
	})
	if err == nil {
		s.ids = append(s.ids, id)
		id, err = conn.DomainEventRebootRegister(d.dom, func(*libvirt.Connect, *libvirt.Domain) { s.report(Rebooted) })
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	s.ids = append(s.ids, id)
	return s, nil
}

// report never blocks the event loop.
func (s *subscription) report(e Event) {
	if e == 0 {
		return
	}
	select {
	case s.events <- e:
	default:
	}
}

// stop returns at once: the daemon may not answer.
func (s *subscription) stop() {
	s.once.Do(func() {
		go func() {
			for _, id := range s.ids {
				_ = s.conn.DomainEventDeregister(id) // fails if the connection is gone
			}
			_, _ = s.conn.Close() // this reference to it
		}()
	})
}

// lifecycle is eventOf. QEMU announces a signal (virsh destroy sends one) like a shutdown of
// the guest; what libvirt reports next says which it was.
func (s *subscription) lifecycle(e *libvirt.DomainEventLifecycle) Event {
	if e.Event == libvirt.DOMAIN_EVENT_SHUTDOWN && libvirt.DomainEventShutdownDetailType(e.Detail) == libvirt.DOMAIN_EVENT_SHUTDOWN_HOST {
		s.signaled = true
		return 0
	}
	event := eventOf(e)
	if event == PoweredOff && s.signaled {
		return Died
	}
	return event
}

// eventOf returns the event that libvirt reports; 0 for one that does not end a domain.
//
// QEMU announces that the guest shuts down, and libvirt that the domain has stopped. A QEMU
// that ends without such an announcement has died (processMonitorEOFEvent in libvirt's
// qemu_driver.c).
func eventOf(e *libvirt.DomainEventLifecycle) Event {
	switch e.Event {
	case libvirt.DOMAIN_EVENT_SHUTDOWN:
		return PoweredOff
	case libvirt.DOMAIN_EVENT_CRASHED:
		return Crashed
	case libvirt.DOMAIN_EVENT_STOPPED:
		switch libvirt.DomainEventStoppedDetailType(e.Detail) {
		case libvirt.DOMAIN_EVENT_STOPPED_SHUTDOWN:
			return PoweredOff
		case libvirt.DOMAIN_EVENT_STOPPED_DESTROYED:
			return Destroyed
		case libvirt.DOMAIN_EVENT_STOPPED_CRASHED:
			return Crashed
		}
		return Died
	}
	return 0
}
