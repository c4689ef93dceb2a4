package virt

import (
	"slices"
	"testing"

	"libvirt.org/go/libvirt"
)

// What QEMU announces because of a signal is decided by what libvirt reports next.
func TestLifecycle(t *testing.T) {
	shutdown := func(detail libvirt.DomainEventShutdownDetailType) *libvirt.DomainEventLifecycle {
		return &libvirt.DomainEventLifecycle{Event: libvirt.DOMAIN_EVENT_SHUTDOWN, Detail: int(detail)}
	}
	stopped := func(detail libvirt.DomainEventStoppedDetailType) *libvirt.DomainEventLifecycle {
		return &libvirt.DomainEventLifecycle{Event: libvirt.DOMAIN_EVENT_STOPPED, Detail: int(detail)}
	}
	for name, test := range map[string]struct {
		reported []*libvirt.DomainEventLifecycle
		want     []Event
	}{
		"the guest powers off":    {[]*libvirt.DomainEventLifecycle{shutdown(libvirt.DOMAIN_EVENT_SHUTDOWN_GUEST), stopped(libvirt.DOMAIN_EVENT_STOPPED_SHUTDOWN)}, []Event{PoweredOff, PoweredOff}},
		"virsh destroy":           {[]*libvirt.DomainEventLifecycle{shutdown(libvirt.DOMAIN_EVENT_SHUTDOWN_HOST), stopped(libvirt.DOMAIN_EVENT_STOPPED_DESTROYED)}, []Event{0, Destroyed}},
		"a signal to QEMU":        {[]*libvirt.DomainEventLifecycle{shutdown(libvirt.DOMAIN_EVENT_SHUTDOWN_HOST), stopped(libvirt.DOMAIN_EVENT_STOPPED_SHUTDOWN)}, []Event{0, Died}},
		"QEMU dies":               {[]*libvirt.DomainEventLifecycle{stopped(libvirt.DOMAIN_EVENT_STOPPED_FAILED)}, []Event{Died}},
		"the guest's kernel dies": {[]*libvirt.DomainEventLifecycle{stopped(libvirt.DOMAIN_EVENT_STOPPED_CRASHED)}, []Event{Crashed}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &subscription{}
			var got []Event
			for _, e := range test.reported {
				got = append(got, s.lifecycle(e))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
