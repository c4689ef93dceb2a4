package network

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// quietInterval is the time between attempts to reach a guest that has sent nothing yet.
const quietInterval = time.Second

// signs are the first signs of life of a guest on a network of this host. The kernel reports
// them to every user (rtnetlink(7), RTNLGRP_NEIGH): a bridge learns the MAC address from the
// first frame that the guest sends, and libvirt's DHCP server writes the neighbour table
// when it gives the guest its address. Until then nothing has to be asked for often.
//
// The kernel reports nothing about guests that are not on a bridge of this host.
type signs struct {
	mu      sync.Mutex
	watched bool
	seen    bool
	tried   time.Time // the last attempt before any sign
}

// watch watches for the MAC addresses until ctx ends. The channel receives a value for each
// sign; several can be one value. It is nil if the kernel reports none.
func (s *signs) watch(ctx context.Context, macs []string) <-chan struct{} {
	updates := make(chan netlink.NeighUpdate)
	// A report that was lost delays the next attempt by quietInterval.
	options := netlink.NeighSubscribeOptions{ErrorCallback: func(error) {}}
	if err := netlink.NeighSubscribeWithOptions(updates, ctx.Done(), options); err != nil {
		return nil
	}
	s.mu.Lock()
	s.watched = true
	s.mu.Unlock()
	changed := make(chan struct{}, 1)
	go func() {
		for update := range updates {
			if !isSign(&update) || !slices.Contains(macs, update.HardwareAddr.String()) {
				continue
			}
			s.mu.Lock()
			s.seen = true
			s.mu.Unlock()
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.watched = false
	}()
	return changed
}

// isSign reports whether an update is about a guest that is alive. An entry that an earlier
// machine with the same MAC address left in the neighbour table becomes invalid after
// other states.
func isSign(update *netlink.NeighUpdate) bool {
	return update.Type == unix.RTM_NEWNEIGH &&
		(update.Family == unix.AF_BRIDGE || update.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE) != 0)
}

// quiet reports whether the guest has not sent anything yet, and was tried less than
// quietInterval ago.
func (s *signs) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.watched || s.seen || time.Since(s.tried) >= quietInterval {
		s.tried = time.Now()
		return false
	}
	return true
}
