package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/perboot"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/virt"
)

// libvirtNetwork is a libvirt network. Its guests reach hosts behind the gateway, but not each
// other: the bridge does not forward between their ports, and a filter prevents traffic
// through the gateway and from the address of another guest. If libvirt assigns the
// addresses, each machine has a reserved one before it starts.
type libvirtNetwork struct {
	host   *virt.Host
	name   string
	port   int
	filter *guestFilter // nil: not possible on this network
	tries  int          // how often the filter did not exist at the start
	finder addressFinder
	signs  signs
	nics   []string            // MAC addresses
	claims []*dhcp.Reservation // of the NICs; none if libvirt has no reservations here
	// noIsolation caches why the kernel's bridge cannot isolate ports: a failed start takes
	// half a second.
	noIsolation perboot.Cache
}

// newLibvirtNetwork looks up the network. The error is [errdefs.ErrInvalid] if libvirt has none
// of that name. The warnings are about missing features.
func newLibvirtNetwork(ctx context.Context, h *virt.Host, o Options) (n *libvirtNetwork, warnings []string, err error) {
	described, err := h.Network(ctx, o.Network)
	if err != nil {
		return nil, nil, err
	}
	n = &libvirtNetwork{host: h, name: o.Network, port: o.SSHPort}
	n.noIsolation = perboot.In(filepath.Dir(o.JobDir), "no-isolated-ports")
	n.filter = filterFor(described)
	if n.filter != nil {
		if err := h.DefineFilter(ctx, guestFilterName, guestFilterXML); err != nil {
			n.filter = nil
			warnings = append(warnings, n.unfiltered(err))
		}
	}
	if why, _, known := n.noIsolation.Read(); known {
		warnings = append(warnings, n.unisolated(why))
	}
	err = n.claimAddresses(ctx, dhcp.PlanOf(described), o.Machine, o.NICs)
	if errors.Is(err, dhcp.ErrNoReservation) {
		warnings = append(warnings, fmt.Sprintf("machines of an image that brings its own DHCP client identifier can contend for one address on network %s: %v", n.name, err))
		err = nil
	}
	if err != nil {
		return nil, nil, errors.Join(err, n.Stop())
	}
	return n, warnings, nil
}

// claimAddresses reserves an address for each NIC if libvirt assigns the addresses. Otherwise
// the NIC only gets a MAC address.
func (n *libvirtNetwork) claimAddresses(ctx context.Context, plan *dhcp.Plan, machine string, nics int) (err error) {
	for range nics {
		var c *dhcp.Reservation
		if plan != nil && err == nil {
			if c, err = dhcp.Claim(ctx, n.host, plan, machine); err == nil {
				n.claims = append(n.claims, c)
				n.nics = append(n.nics, c.MAC)
				continue
			}
			if !errors.Is(err, dhcp.ErrNoReservation) {
				return err
			}
		}
		n.nics = append(n.nics, dhcp.RandomMAC())
	}
	return err
}

func (n *libvirtNetwork) Attach(d *libvirtxml.Domain) error {
	_, _, cannotIsolate := n.noIsolation.Read()
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

// Retry removes features that this host lacks: isolated ports, which some kernels do not
// support, or filters, which need ebtables.
func (n *libvirtNetwork) Retry(ctx context.Context, err error, d *libvirtxml.Domain) (string, bool) {
	nics := d.Devices.Interfaces
	switch {
	case len(nics) == 0:
		return "", false
	case strings.Contains(err.Error(), "isolated") && nics[0].PortOptions != nil:
		for i := range nics {
			nics[i].PortOptions = nil
		}
		n.noIsolation.Write(err.Error())
		return n.unisolated(err.Error()), true
	case n.filter != nil && isFilterGone(err) && n.tries < filterTries:
		// The last machine that used it has ended since it was defined.
		n.tries++
		return "", n.host.DefineFilter(ctx, guestFilterName, guestFilterXML) == nil
	case n.filter != nil && virt.IsFilterError(err):
		n.filter = nil
		for i := range nics {
			nics[i].FilterRef = nil
		}
		return n.unfiltered(err), true
	}
	return "", false
}

// unisolated returns the warning for a bridge without isolated ports; empty if the filter
// isolates the guests.
func (n *libvirtNetwork) unisolated(why string) string {
	if n.filter != nil {
		return ""
	}
	return fmt.Sprintf("the guests of network %s are not isolated from each other: the kernel's bridge does not support it (%s)", n.name, why)
}

func (n *libvirtNetwork) unfiltered(err error) string {
	return fmt.Sprintf("the guests of network %s can use each other's addresses and reach each other through the gateway: "+
		"libvirt cannot filter here (%v)", n.name, err)
}

// claimOf returns the reservation of a NIC; nil if it has none.
func (n *libvirtNetwork) claimOf(nic int) *dhcp.Reservation {
	if len(n.claims) != len(n.nics) || nic >= len(n.claims) {
		return nil
	}
	return n.claims[nic]
}

// Started checks that no other machine has the addresses, and releases the locks on them: the
// domain has the MAC addresses now.
func (n *libvirtNetwork) Started(ctx context.Context) error {
	for _, c := range n.claims {
		if err := c.CheckSole(ctx, n.host); err != nil {
			return err
		}
	}
	return n.Stop()
}

func (n *libvirtNetwork) MACs() []string { return n.nics }

func (n *libvirtNetwork) Address(ctx context.Context, dom *virt.Domain) (string, error) {
	if only := n.claimOf(0); only != nil && len(n.nics) == 1 {
		return net.JoinHostPort(only.Address.String(), strconv.Itoa(n.port)), nil
	}
	return n.finder.find(ctx, dom, n.port)
}

// Absent looks for the lease of the address.
func (n *libvirtNetwork) Absent(ctx context.Context) error {
	only := n.claimOf(0)
	if only == nil {
		return nil
	}
	leases, err := n.host.Leases(ctx, n.name)
	if err != nil {
		return nil // the caller has a better error
	}
	switch other, leased := dhcp.Holders(leases)[only.Address]; {
	case !leased:
		return ErrNoLease
	case !slices.Contains(n.nics, other):
		return fmt.Errorf("%w: network %s reserves %s for this machine (%s), but has leased it to %s", ErrContested, n.name, only.Address, only.MAC, other)
	}
	return nil
}

// ErrNoLease: the guest has not got an address from the network's DHCP server.
var ErrNoLease = errors.New("got no address from the network (does it use DHCP?)")

func (n *libvirtNetwork) Watch(ctx context.Context) <-chan struct{} {
	return n.signs.watch(ctx, n.nics)
}

// Stalled is true while the guest has sent nothing, except once a second.
func (n *libvirtNetwork) Stalled() bool { return n.signs.quiet() }

func (n *libvirtNetwork) Ended() error { return nil }

func (n *libvirtNetwork) Stop() error {
	var failed []error
	for _, c := range n.claims {
		failed = append(failed, c.Unlock())
	}
	return errors.Join(failed...)
}

func isFilterGone(err error) bool {
	return virt.IsNoFilter(err) ||
		virt.IsFilterError(err) && strings.Contains(err.Error(), guestFilterName)
}
