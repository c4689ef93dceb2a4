package vm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// libvirtNetwork is one of libvirt's networks. Its guests reach what is behind
// the network's gateway and not each other: the bridge does not forward between
// their ports, and a filter keeps them from going round by the gateway, which
// routes, and from speaking with another's address.
type libvirtNetwork struct {
	host   *Host
	name   string
	port   int
	filter *guestFilter // nil: none can be had on this network
	tries  int          // times that the filter was gone when the machine started
	finder addressFinder
	// noIsolation says, if there is such a note, why the kernel's bridge cannot
	// isolate ports: a start that fails because of it costs half a second.
	noIsolation bootNote
}

// newLibvirtNetwork looks the network up; the error is [ErrSpec] if libvirt has
// none of that name. The warnings say what the guest's network lacks here.
func newLibvirtNetwork(ctx context.Context, h *Host, spec *Spec) (n *libvirtNetwork, warnings []string, err error) {
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
	return n, warnings, nil
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
		nic.FilterRef = n.filter.ref()
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

func (n *libvirtNetwork) started(context.Context) error { return nil }

func (n *libvirtNetwork) address(ctx context.Context, dom *libvirt.Domain) (string, error) {
	return n.finder.find(ctx, dom, n.port)
}

func (n *libvirtNetwork) ended() error { return nil }

func (n *libvirtNetwork) stop() error { return nil }

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
