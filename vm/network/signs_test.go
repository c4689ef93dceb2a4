package network

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A guest that has sent nothing is tried once in a while, any other as often as the caller
// likes.
func TestQuiet(t *testing.T) {
	for _, test := range []struct {
		name string
		s    *signs
		want bool // the second time
	}{
		{"the kernel reports nothing", &signs{}, false},
		{"no sign yet", &signs{watched: true}, true},
		{"a sign", &signs{watched: true, seen: true}, false},
	} {
		if test.s.quiet() {
			t.Errorf("%s: not tried at all", test.name)
		}
		if got := test.s.quiet(); got != test.want {
			t.Errorf("%s: quiet is %v", test.name, got)
		}
	}
}

// What an earlier machine with the same MAC address has left is no sign of life.
func TestIsSign(t *testing.T) {
	for _, test := range []struct {
		name string
		netlink.NeighUpdate
		want bool
	}{
		{"the bridge has learned the address", update(unix.RTM_NEWNEIGH, unix.AF_BRIDGE, netlink.NUD_REACHABLE), true},
		{"the bridge has forgotten it", update(unix.RTM_DELNEIGH, unix.AF_BRIDGE, netlink.NUD_REACHABLE), false},
		{"the DHCP server gives an address", update(unix.RTM_NEWNEIGH, unix.AF_INET, netlink.NUD_STALE), true},
		{"the guest answers", update(unix.RTM_NEWNEIGH, unix.AF_INET6, netlink.NUD_REACHABLE), true},
		{"an old entry is probed", update(unix.RTM_NEWNEIGH, unix.AF_INET, netlink.NUD_PROBE), false},
		{"an old entry has failed", update(unix.RTM_NEWNEIGH, unix.AF_INET, netlink.NUD_FAILED), false},
		{"no answer", update(unix.RTM_NEWNEIGH, unix.AF_INET, netlink.NUD_INCOMPLETE), false},
	} {
		if got := isSign(&test.NeighUpdate); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func update(kind uint16, family, state int) netlink.NeighUpdate {
	return netlink.NeighUpdate{Type: kind, Neigh: netlink.Neigh{Family: family, State: state}}
}
