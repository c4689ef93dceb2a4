package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// UserNetwork is the name of the network that needs no privileges and no set-up.
const UserNetwork = "user"

// errNoAddress: the guest has no address yet.
var errNoAddress = errors.New("the guest has no address yet")

// A network is how one guest reaches the world, and we reach the guest.
type network interface {
	// attach gives the domain its NICs. It is called once, before the domain
	// starts, after whatever the network needs on the host is up.
	attach(domain *libvirtxml.Domain) error
	// address is host:port of the guest's SSH server, seen from here; the error
	// is errNoAddress while that is not known.
	address(ctx context.Context, dom *libvirt.Domain) (string, error)
	// retry changes the domain, which libvirt did not start because of err, so that
	// another try may succeed, and says what the guest has less by it; false if
	// there is nothing to change.
	retry(err error, domain *libvirtxml.Domain) (warning string, again bool)
	// stop ends what was started on the host for a domain that did not come up.
	stop() error
}

// newNetwork readies the network of a machine.
func newNetwork(ctx context.Context, h *Host, spec *Spec) (network, []string, error) {
	if spec.Network == UserNetwork {
		return newUserNetwork(ctx, spec.JobDir, spec.SSHPort)
	}
	n, err := findLibvirtNetwork(ctx, h, spec.Network, spec.SSHPort)
	return n, nil, err
}

// libvirtNetwork is one of libvirt's networks; the address comes from its
// leases.
type libvirtNetwork struct {
	name string
	port int
}

func findLibvirtNetwork(ctx context.Context, h *Host, name string, port int) (*libvirtNetwork, error) {
	active, err := await(ctx, "look up network "+name, func() (bool, error) {
		n, err := h.conn.LookupNetworkByName(name)
		if err != nil {
			return false, err
		}
		defer n.Free()
		return n.IsActive()
	})
	if isCode(err, libvirt.ERR_NO_NETWORK) {
		return nil, fmt.Errorf("%w: libvirt at %s has no network %q (virsh net-list --all lists them; network = %q needs none)",
			ErrSpec, h.uri, name, UserNetwork)
	}
	if err != nil {
		return nil, err
	}
	if !active {
		return nil, fmt.Errorf("network %q of libvirt is not active (virsh -c %s net-start %s)", name, h.uri, name)
	}
	return &libvirtNetwork{name: name, port: port}, nil
}

func (n *libvirtNetwork) attach(d *libvirtxml.Domain) error {
	for i := range d.Devices.Interfaces {
		nic := &d.Devices.Interfaces[i]
		nic.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: n.name}}
		// Guests of one network do not see each other.
		nic.PortOptions = &libvirtxml.DomainInterfacePortOptions{Isolated: "yes"}
	}
	return nil
}

func (n *libvirtNetwork) address(ctx context.Context, dom *libvirt.Domain) (string, error) {
	nics, err := await(ctx, "read the DHCP leases of network "+n.name, func() ([]libvirt.DomainInterface, error) {
		return dom.ListAllInterfaceAddresses(libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE)
	})
	if err != nil {
		return "", err
	}
	for _, nic := range nics {
		for _, a := range nic.Addrs {
			return net.JoinHostPort(a.Addr, strconv.Itoa(n.port)), nil
		}
	}
	return "", errNoAddress
}

// retry gives up port isolation where the kernel's bridge cannot do it.
func (n *libvirtNetwork) retry(err error, d *libvirtxml.Domain) (string, bool) {
	if !strings.Contains(err.Error(), "isolated") {
		return "", false
	}
	again := false
	for i := range d.Devices.Interfaces {
		again = again || d.Devices.Interfaces[i].PortOptions != nil
		d.Devices.Interfaces[i].PortOptions = nil
	}
	return fmt.Sprintf("the guests of network %s are not isolated from each other: the kernel's bridge cannot do it (%v)", n.name, err), again
}

func (n *libvirtNetwork) stop() error { return nil }
