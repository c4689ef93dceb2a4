// Package network connects guests to a private user network (passt or slirp), or to a libvirt
// network with a reserved address and a filter.
package network

import (
	"context"
	"errors"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// User is the name of the user network, which needs neither privileges nor setup.
const User = "user"

// A Network connects one guest, and makes it reachable from this host.
type Network interface {
	// Attach connects the NICs of the domain. It is called once, before the domain starts.
	Attach(domain *libvirtxml.Domain) error
	// Retry changes the domain after libvirt failed to start it with err, so that the next
	// attempt may succeed. The warning says what the guest then lacks. again is false if
	// there is nothing to change.
	Retry(ctx context.Context, err error, domain *libvirtxml.Domain) (warning string, again bool)
	// Started waits until the machine, which has just started, is connected.
	Started(ctx context.Context) error
	// MACs returns the MAC addresses of its NICs; none if the guest is reached through a
	// port of this host.
	MACs() []string
	// Address returns host:port of the guest's SSH server as seen from this host; empty
	// while it is not known. It can change while the guest boots.
	Address(ctx context.Context, dom *virt.Domain) (string, error)
	// Watch returns a channel that receives a value when the guest may have got its address or
	// changed it, until ctx ends. The channel is nil if this host does not learn of that.
	Watch(ctx context.Context) <-chan struct{}
	// Absent returns the reason why no guest answers at the address; nil if it is not known.
	Absent(ctx context.Context) error
	// Stalled reports whether the guest takes no packets: attempts to connect to it would only
	// fill a queue on the host. It compares with the last call, and is false if that is not known.
	Stalled() bool
	// Ended returns the reason why the network does not work any more; nil while it works.
	Ended() error
	// Stop stops and releases everything on the host for a domain that did not start.
	Stop() error
}

// ErrContested: another machine answers at the guest's address, or it is not known which one
// does. Credentials are only sent to the guest itself.
var ErrContested = errors.New("the guest's address is contested")

// Options describe the network of a machine.
type Options struct {
	// Network is [User] or the name of a libvirt network.
	Network string
	// Machine is the name of the machine, and NICs the number of its NICs.
	Machine string
	NICs    int
	// SSHPort is the port of the guest's SSH server.
	SSHPort int
	// HostAccess: the guest on the user network reaches the host at its own address.
	HostAccess bool
	// OverlayDir is the directory for the overlays of all machines, JobDir that of the job.
	OverlayDir, JobDir string
}

// New prepares the network of a machine. The warnings are about missing features.
func New(ctx context.Context, h *virt.Host, o Options) (Network, []string, error) {
	if o.Network == User {
		return newUserNetwork(ctx, h, o)
	}
	return newLibvirtNetwork(ctx, h, o)
}
