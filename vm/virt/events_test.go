package virt_test

import (
	"slices"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// libvirt reports how a domain ended, and only that of the domain that was asked for.
func TestEvents(t *testing.T) {
	h := virttest.OpenEmpty(t)
	for name, test := range map[string]struct {
		end  func(*virt.Domain) error
		want virt.Event
	}{
		"destroyed":   {func(d *virt.Domain) error { return d.Destroy(t.Context()) }, virt.Destroyed},
		"powered off": {func(d *virt.Domain) error { return d.Libvirt().Shutdown() }, virt.PoweredOff},
	} {
		t.Run(name, func(t *testing.T) {
			other := virttest.Start(t, h, &libvirtxml.Domain{Name: "other of " + name})
			dom := virttest.Start(t, h, &libvirtxml.Domain{Name: name})
			events, stop, err := dom.Events(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			if err := other.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := test.end(dom); err != nil {
				t.Fatal(err)
			}
			var got []virt.Event
			for len(got) == 0 {
				select {
				case e := <-events:
					got = append(got, e)
				case <-time.After(time.Minute):
					t.Fatal("no event")
				}
			}
			if !slices.Equal(got, []virt.Event{test.want}) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			stop()
			stop()
		})
	}
}

// One watch of a domain follows another: stop does not wait for the daemon. Events go on while
// the last watch of a connection ends, in which libvirt can lose them for good.
func TestEventsOfOneWatchAfterAnother(t *testing.T) {
	h := virttest.OpenEmpty(t)
	for range 2 {
		dom := virttest.Start(t, h, &libvirtxml.Domain{Name: "watched"})
		for range 10 {
			_, stop, err := dom.Events(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := virttest.Start(t, h, &libvirtxml.Domain{Name: "other"}).Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
			stop()
		}
		events, stop, err := dom.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := dom.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-events:
			if e != virt.Destroyed {
				t.Errorf("got %v", e)
			}
		case <-time.After(time.Minute):
			t.Fatal("no event")
		}
		stop()
	}
}
