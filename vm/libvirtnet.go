package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// libvirtNetwork is one of libvirt's networks. Its guests reach what is behind
// the network's gateway and not each other: the bridge does not forward between
// their ports, and a filter keeps them from going round by the gateway, which
// routes, and from speaking with another's address. Where libvirt hands out the
// network's addresses, each machine has its own before it starts.
type libvirtNetwork struct {
	host   *Host
	name   string
	port   int
	filter *guestFilter // nil: none can be had on this network
	tries  int          // times that the filter was gone when the machine started
	finder addressFinder
	nics   []string // MAC addresses
	claims []*claim // addresses of the NICs; none where libvirt reserves none
	// noIsolation says, if there is such a note, why the kernel's bridge cannot
	// isolate ports: a start that fails because of it costs half a second.
	noIsolation bootNote
}

// newLibvirtNetwork looks the network up; the error is [ErrSpec] if libvirt has
// none of that name. The warnings say what the guest's network lacks here.
func newLibvirtNetwork(ctx context.Context, h *Host, spec *Spec, nics int) (n *libvirtNetwork, warnings []string, err error) {
	described, err := h.describeNetwork(ctx, spec.Network)
	if err != nil {
		return nil, nil, err
	}
	n = &libvirtNetwork{host: h, name: spec.Network, port: spec.SSHPort}
	n.noIsolation = noteIn(filepath.Dir(spec.JobDir), "no-isolated-ports")
	n.filter = filterFor(described)
	if n.filter != nil {
		if err := h.defineGuestFilter(ctx); err != nil {
			n.filter = nil
			warnings = append(warnings, n.unfiltered(err))
		}
	}
	if why, _, known := n.noIsolation.read(); known {
		warnings = append(warnings, n.unisolated(why))
	}
	err = n.claimAddresses(ctx, planOf(described), spec.Name, nics)
	if errors.Is(err, errNoReservation) {
		warnings = append(warnings, fmt.Sprintf("machines of an image that brings its own DHCP client identifier can contend for one address on network %s: %v", n.name, err))
		err = nil
	}
	if err != nil {
		return nil, nil, errors.Join(err, n.stop())
	}
	return n, warnings, nil
}

// claimAddresses takes an address for each NIC, if there is a plan of addresses; else a
// MAC address alone.
func (n *libvirtNetwork) claimAddresses(ctx context.Context, plan *dhcpPlan, machine string, nics int) (err error) {
	for range nics {
		var c *claim
		if plan != nil && err == nil {
			if c, err = n.host.claimAddress(ctx, plan, machine); err == nil {
				n.claims = append(n.claims, c)
				n.nics = append(n.nics, c.mac)
				continue
			}
			if !errors.Is(err, errNoReservation) {
				return err
			}
		}
		n.nics = append(n.nics, randomMAC())
	}
	return err
}

// describeNetwork reads the definition of an active network.
func (h *Host) describeNetwork(ctx context.Context, name string) (*libvirtxml.Network, error) {
	type network struct {
		active bool
		doc    string
	}
	found, err := await(ctx, "look up network "+name, func() (found network, err error) {
		n, err := h.conn.LookupNetworkByName(name)
		if err != nil {
			return found, err
		}
		defer n.Free()
		if found.active, err = n.IsActive(); err != nil {
			return found, err
		}
		found.doc, err = n.GetXMLDesc(0)
		return found, err
	})
	switch {
	case isCode(err, libvirt.ERR_NO_NETWORK):
		return nil, fmt.Errorf("%w: libvirt at %s has no network %q (virsh net-list --all lists them; network = %q needs none)",
			ErrSpec, h.uri, name, UserNetwork)
	case err != nil:
		return nil, err
	case !found.active:
		return nil, fmt.Errorf("network %q of libvirt is not active (virsh -c %s net-start %s)", name, h.uri, name)
	}
	described := &libvirtxml.Network{}
	if err := described.Unmarshal(found.doc); err != nil {
		return nil, fmt.Errorf("read the definition of network %q: %w", name, err)
	}
	return described, nil
}

func (n *libvirtNetwork) attach(d *libvirtxml.Domain) error {
	_, _, cannotIsolate := n.noIsolation.read()
	for i := range d.Devices.Interfaces {
		nic := &d.Devices.Interfaces[i]
		nic.Source = &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: n.name}}
		if !cannotIsolate {
			nic.PortOptions = &libvirtxml.DomainInterfacePortOptions{Isolated: "yes"}
		}
		nic.FilterRef = n.filter.ref(n.claimOf(i))
		nic.MAC = &libvirtxml.DomainInterfaceMAC{Address: n.nics[i]}
	}
	return nil
}

// retry gives up what this host cannot do: isolated ports, which some kernels'
// bridges lack, or filters, which need ebtables.
func (n *libvirtNetwork) retry(ctx context.Context, err error, d *libvirtxml.Domain) (string, bool) {
	nics := d.Devices.Interfaces
	switch {
	case len(nics) == 0:
		return "", false
	case strings.Contains(err.Error(), "isolated") && nics[0].PortOptions != nil:
		for i := range nics {
			nics[i].PortOptions = nil
		}
		n.noIsolation.write(err.Error())
		return n.unisolated(err.Error()), true
	case n.filter != nil && isFilterGone(err) && n.tries < filterTries:
		// The last other machine that had it ended since we made sure of it.
		n.tries++
		return "", n.host.defineGuestFilter(ctx) == nil
	case n.filter != nil && isFilterError(err):
		n.filter = nil
		for i := range nics {
			nics[i].FilterRef = nil
		}
		return n.unfiltered(err), true
	}
	return "", false
}

// unisolated says what guests can do on a bridge whose ports are not isolated;
// nothing if the filter keeps them from it.
func (n *libvirtNetwork) unisolated(why string) string {
	if n.filter != nil {
		return ""
	}
	return fmt.Sprintf("the guests of network %s are not isolated from each other: the kernel's bridge cannot do it (%s)", n.name, why)
}

func (n *libvirtNetwork) unfiltered(err error) string {
	return fmt.Sprintf("the guests of network %s can take each other's addresses, and reach each other by way of the gateway: "+
		"libvirt cannot filter here (%v)", n.name, err)
}

// claimOf is the address of a NIC; nil if it has none of its own.
func (n *libvirtNetwork) claimOf(nic int) *claim {
	if len(n.claims) != len(n.nics) || nic >= len(n.claims) {
		return nil
	}
	return n.claims[nic]
}

// started lets go of the addresses' locks: the domain has the MAC addresses now.
func (n *libvirtNetwork) started(context.Context) error { return n.stop() }

func (n *libvirtNetwork) macs() []string { return n.nics }

func (n *libvirtNetwork) address(ctx context.Context, dom *libvirt.Domain) (string, error) {
	if only := n.claimOf(0); only != nil && len(n.nics) == 1 {
		return net.JoinHostPort(only.address.String(), strconv.Itoa(n.port)), nil
	}
	return n.finder.find(ctx, dom, n.port)
}

// absent asks the network's DHCP server what became of the address.
func (n *libvirtNetwork) absent(ctx context.Context) error {
	only := n.claimOf(0)
	if only == nil {
		return nil
	}
	leases, err := n.host.leases(ctx, n.name)
	if err != nil {
		return nil // that of the caller is worth more
	}
	switch other, leased := leaseHolders(leases)[only.address]; {
	case !leased:
		return errNoLease
	case !slices.Contains(n.nics, other):
		return fmt.Errorf("%w: network %s reserves %s for this machine (%s), but has leased it to %s", ErrContested, n.name, only.address, only.mac, other)
	}
	return nil
}

// errNoLease: the network's DHCP server has given the guest no address.
var errNoLease = errors.New("got no address from the network (does it use DHCP?)")

func (n *libvirtNetwork) ended() error { return nil }

func (n *libvirtNetwork) stop() error {
	var failed []error
	for _, c := range n.claims {
		failed = append(failed, c.lock.unlock())
	}
	return errors.Join(failed...)
}

// isFilterError says whether libvirt failed at filtering, not at the machine.
func isFilterError(err error) bool {
	var e virt.Error
	return errors.As(err, &e) &&
		(e.Cause.Domain == libvirt.FROM_NWFILTER || e.Cause.Domain == libvirt.FROM_FIREWALL)
}

func isFilterGone(err error) bool {
	return isCode(err, libvirt.ERR_NO_NWFILTER) ||
		isFilterError(err) && strings.Contains(err.Error(), guestFilterName)
}
