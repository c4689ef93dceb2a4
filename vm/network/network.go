// Package network connects guests: on a private user network (passt or slirp) or on one of
// libvirt's networks, with an address of their own and a filter.
package network

import (
	"context"
	"errors"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// User is the name of the network that needs no privileges and no set-up.
const User = "user"

// A Network is how one guest reaches the world, and we reach the guest.
type Network interface {
	// Attach gives the domain its NICs. It is called once, before the domain
	// starts, after whatever the network needs on the host is up.
	Attach(domain *libvirtxml.Domain) error
	// Retry changes the domain, which libvirt did not start because of err, so that
	// another try may succeed, and says what the guest has less by it; false if
	// there is nothing to change.
	Retry(ctx context.Context, err error, domain *libvirtxml.Domain) (warning string, again bool)
	// Started waits until the machine, which has just started, is connected to what
	// was started on the host for it.
	Started(ctx context.Context) error
	// MACs are the MAC addresses of its NICs; none if the guest is reached by a port of
	// this host.
	MACs() []string
	// Address is host:port of the guest's SSH server, seen from here; empty while
	// that is not known. It can change while the guest boots.
	Address(ctx context.Context, dom *virt.Domain) (string, error)
	// Absent says what is known of why nobody answers at the address; nil for nothing.
	Absent(ctx context.Context) error
	// Ended says why the network can serve its guest no more; nil as long as it can.
	Ended() error
	// Stop ends what was started on the host for a domain that did not come up, and
	// gives up what was taken for it.
	Stop() error
}

// ErrContested: another machine than this one answers at the address of its guest, or
// it is not known which one does. What is for a guest, be it a password, is given to
// no other.
var ErrContested = errors.New("the guest's address is contested")

// Options describe the network of a machine.
type Options struct {
	// Network is [User] or the name of a libvirt network.
	Network string
	// Machine is the name of the machine, and NICs how many it has.
	Machine string
	NICs    int
	// SSHPort is the port of the guest's SSH server.
	SSHPort int
	// OverlayDir is the directory of the overlays of all machines, and JobDir that of
	// this machine's job.
	OverlayDir, JobDir string
}

// New readies the network of a machine. The warnings say what it lacks on this host.
func New(ctx context.Context, h *virt.Host, o Options) (Network, []string, error) {
	if o.Network == User {
		return newUserNetwork(ctx, h, o)
	}
	return newLibvirtNetwork(ctx, h, o)
}

// Check says why machines cannot be connected to a libvirt network; nil if they can.
func Check(ctx context.Context, h *virt.Host, name string) error {
	_, err := h.Network(ctx, name)
	return err
}
