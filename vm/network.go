package vm

import (
	"context"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// UserNetwork is the name of the network that needs no privileges and no set-up.
const UserNetwork = "user"

// A network is how one guest reaches the world, and we reach the guest.
type network interface {
	// attach gives the domain its NICs. It is called once, before the domain
	// starts, after whatever the network needs on the host is up.
	attach(domain *libvirtxml.Domain) error
	// retry changes the domain, which libvirt did not start because of err, so that
	// another try may succeed, and says what the guest has less by it; false if
	// there is nothing to change.
	retry(ctx context.Context, err error, domain *libvirtxml.Domain) (warning string, again bool)
	// started waits until the machine, which has just started, is connected to what
	// was started on the host for it.
	started(ctx context.Context) error
	// macs are the MAC addresses of its NICs; none if the guest is reached by a port of
	// this host.
	macs() []string
	// address is host:port of the guest's SSH server, seen from here; empty while
	// that is not known. It can change while the guest boots.
	address(ctx context.Context, dom *libvirt.Domain) (string, error)
	// absent says what is known of why nobody answers at the address; nil for nothing.
	absent(ctx context.Context) error
	// ended says why the network can serve its guest no more; nil as long as it can.
	ended() error
	// stop ends what was started on the host for a domain that did not come up, and
	// gives up what was taken for it.
	stop() error
}

// newNetwork readies the network of a machine with so many NICs.
func newNetwork(ctx context.Context, h *Host, spec *Spec, nics int) (network, []string, error) {
	if spec.Network == UserNetwork {
		return newUserNetwork(ctx, h, spec)
	}
	return newLibvirtNetwork(ctx, h, spec, nics)
}

// CheckNetwork says why machines cannot be connected to a libvirt network; nil if
// they can.
func (h *Host) CheckNetwork(ctx context.Context, name string) error {
	_, err := h.describeNetwork(ctx, name)
	return err
}
