package virt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

// ErrUnsupported: the daemon does not support the operation, or denies it to this user.
var ErrUnsupported = errors.New("not supported by libvirt")

// QEMUUser is the user that the daemon runs QEMU as. The daemon reports it in its
// capabilities, as the base label of the security model "dac".
func (h *Host) QEMUUser(ctx context.Context) (syscall.Credential, error) {
	if !h.System() {
		return syscall.Credential{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}, nil
	}
	text, err := await(ctx, &h.calls, "ask libvirt for its capabilities", h.conn.GetCapabilities)
	if err != nil {
		return syscall.Credential{}, err
	}
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(text); err != nil {
		return syscall.Credential{}, fmt.Errorf("read the capabilities of libvirt: %w", err)
	}
	for _, model := range caps.Host.SecModel {
		for _, label := range model.Labels {
			var u syscall.Credential
			if model.Name != "dac" {
				continue
			}
			if _, err := fmt.Sscanf(label.Value, "+%d:+%d", &u.Uid, &u.Gid); err == nil {
				return u, nil
			}
		}
	}
	return syscall.Credential{}, nil // no dynamic ownership: QEMU runs as the daemon does
}

// Network returns the definition of an active network. The error is an [errdefs.ErrInvalid] if
// there is none of that name.
func (h *Host) Network(ctx context.Context, name string) (*libvirtxml.Network, error) {
	type network struct {
		active bool
		doc    string
	}
	found, err := onNetwork(ctx, h, name, "look up network "+name, func(n *libvirt.Network) (found network, err error) {
		if found.active, err = n.IsActive(); err != nil {
			return found, err
		}
		found.doc, err = n.GetXMLDesc(0)
		return found, err
	})
	switch {
	case isCode(err, libvirt.ERR_NO_NETWORK):
		return nil, fmt.Errorf("%w: libvirt at %s has no network %q (virsh net-list --all lists them; network = \"user\" needs none)",
			errdefs.ErrInvalid, h.uri, name)
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

// Networks returns the names of the active networks; none if the driver has no networks.
func (h *Host) Networks(ctx context.Context) ([]string, error) {
	names, err := await(ctx, &h.calls, "list the networks", h.conn.ListNetworks)
	if isCode(err, libvirt.ERR_NO_SUPPORT) {
		return nil, nil
	}
	return names, err
}

// A Lease is an address that the DHCP server of a network has given to a client.
type Lease struct{ IP, MAC, ClientID string }

// Leases lists the leases of a network.
func (h *Host) Leases(ctx context.Context, network string) ([]Lease, error) {
	return onNetwork(ctx, h, network, "ask for the leases of network "+network, func(n *libvirt.Network) ([]Lease, error) {
		found, err := n.GetDHCPLeases()
		leases := make([]Lease, len(found))
		for i, l := range found {
			leases[i] = Lease{IP: l.IPaddr, MAC: l.Mac, ClientID: l.Clientid}
		}
		return leases, err
	})
}

// AddReservation reserves an address of a running network, and does not change its
// definition. index is that of the <ip> element. The error is an [ErrUnsupported] if
// libvirt has no reservations here.
func (h *Host) AddReservation(ctx context.Context, network string, index int, host *libvirtxml.NetworkDHCPHost) error {
	return h.updateReservation(ctx, network, libvirt.NETWORK_UPDATE_COMMAND_ADD_LAST, index, host)
}

// DropReservation removes a reservation. One that is gone is no error.
func (h *Host) DropReservation(ctx context.Context, network string, index int, host *libvirtxml.NetworkDHCPHost) error {
	err := h.updateReservation(ctx, network, libvirt.NETWORK_UPDATE_COMMAND_DELETE, index, host)
	if IsOperationInvalid(err) {
		return nil
	}
	return err
}

func (h *Host) updateReservation(ctx context.Context, network string, command libvirt.NetworkUpdateCommand, index int, host *libvirtxml.NetworkDHCPHost) error {
	doc, err := host.Marshal()
	if err != nil {
		return err
	}
	_, err = onNetwork(ctx, h, network, "reserve "+host.IP+" on network "+network, func(n *libvirt.Network) (struct{}, error) {
		return struct{}{}, n.Update(command, libvirt.NETWORK_SECTION_IP_DHCP_HOST, index, doc, libvirt.NETWORK_UPDATE_AFFECT_LIVE)
	})
	for _, code := range []libvirt.ErrorNumber{
		libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED, libvirt.ERR_OPERATION_DENIED, libvirt.ERR_AUTH_UNAVAILABLE, libvirt.ERR_ACCESS_DENIED,
	} {
		if isCode(err, code) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return err
}

// onNetwork runs a call on a network.
func onNetwork[T any](ctx context.Context, h *Host, network, what string, ask func(*libvirt.Network) (T, error)) (T, error) {
	return await(ctx, &h.calls, what, func() (none T, _ error) {
		n, err := h.conn.LookupNetworkByName(network)
		if err != nil {
			return none, err
		}
		defer n.Free()
		return ask(n)
	})
}

var macElement = regexp.MustCompile(`<mac address=['"]([0-9A-Fa-f:]{17})['"]`)

// RunningMACs returns the MAC addresses of all running domains, in lower case, with the number of
// network interfaces that have each.
func (h *Host) RunningMACs(ctx context.Context) (map[string]int, error) {
	return await(ctx, &h.calls, "ask for the MAC addresses of the domains", func() (map[string]int, error) {
		domains, err := h.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return nil, err
		}
		macs := make(map[string]int)
		for i := range domains {
			doc, xmlErr := domains[i].GetXMLDesc(0)
			domains[i].Free()
			if xmlErr != nil && !isCode(xmlErr, libvirt.ERR_NO_DOMAIN) { // the domain has just ended
				err = errors.Join(err, xmlErr)
			}
			for _, found := range macElement.FindAllStringSubmatch(doc, -1) {
				macs[strings.ToLower(found[1])]++
			}
		}
		return macs, err
	})
}

// DefineFilter makes sure that libvirt has a network filter of that name.
func (h *Host) DefineFilter(ctx context.Context, name, doc string) error {
	return awaitDone(ctx, &h.calls, "define network filter "+name, func() error {
		filter, err := h.conn.LookupNWFilterByName(name)
		if isCode(err, libvirt.ERR_NO_NWFILTER) {
			filter, err = h.conn.NWFilterDefineXML(doc)
		}
		if err != nil {
			// Another process may have been faster.
			if filter, again := h.conn.LookupNWFilterByName(name); again == nil {
				return filter.Free()
			}
			return err
		}
		return filter.Free()
	})
}

// UndefineFilter removes a network filter unless a domain uses it. It does nothing if there
// is no such filter, or if the driver has no filters.
func (h *Host) UndefineFilter(ctx context.Context, name string) error {
	err := awaitDone(ctx, &h.calls, "remove network filter "+name, func() error {
		filter, err := h.conn.LookupNWFilterByName(name)
		if err != nil {
			return err
		}
		defer filter.Free()
		return filter.Undefine()
	})
	for _, fine := range []libvirt.ErrorNumber{
		libvirt.ERR_NO_NWFILTER, libvirt.ERR_OPERATION_INVALID, libvirt.ERR_NO_SUPPORT, libvirt.ERR_INVALID_NWFILTER,
	} {
		if isCode(err, fine) {
			return nil
		}
	}
	return err
}

// IsNoFilter reports whether libvirt failed because a network filter does not exist.
func IsNoFilter(err error) bool { return isCode(err, libvirt.ERR_NO_NWFILTER) }

// IsFilterError reports whether libvirt failed to filter the network of a domain.
func IsFilterError(err error) bool {
	var e readableError
	return errors.As(err, &e) &&
		(e.Cause.Domain == libvirt.FROM_NWFILTER || e.Cause.Domain == libvirt.FROM_FIREWALL)
}

// IsOperationInvalid reports whether libvirt refused an operation because of the state of
// the object: it exists already, does not exist, or is in use.
func IsOperationInvalid(err error) bool { return isCode(err, libvirt.ERR_OPERATION_INVALID) }

// An AddressSource is a source of the addresses of a guest.
type AddressSource = libvirt.DomainInterfaceAddressesSource

// The sources of addresses: the leases of the network's own DHCP server, the guest's
// agent, and the host's ARP table.
const (
	FromLease AddressSource = libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE
	FromAgent AddressSource = libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
	FromARP   AddressSource = libvirt.DOMAIN_INTERFACE_ADDRESSES_SRC_ARP
)

// An Interface is an interface of a guest.
type Interface struct {
	MAC       string
	Addresses []string
}

// Interfaces returns the addresses of the guest from one source; none if the source has
// none yet, or is not available.
func (d *Domain) Interfaces(ctx context.Context, source AddressSource) ([]Interface, error) {
	interfaces, err := await(ctx, &d.calls, "ask for the guest's address", func() ([]Interface, error) {
		found, err := d.dom.ListAllInterfaceAddresses(source)
		interfaces := make([]Interface, len(found))
		for i, nic := range found {
			interfaces[i].MAC = nic.Hwaddr
			for _, a := range nic.Addrs {
				interfaces[i].Addresses = append(interfaces[i].Addresses, a.Addr)
			}
		}
		return interfaces, err
	})
	for _, code := range []libvirt.ErrorNumber{
		libvirt.ERR_AGENT_UNRESPONSIVE, libvirt.ERR_ARGUMENT_UNSUPPORTED, libvirt.ERR_CONFIG_UNSUPPORTED,
		libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED, libvirt.ERR_OPERATION_INVALID,
		libvirt.ERR_INTERNAL_ERROR, libvirt.ERR_NO_NETWORK,
	} {
		if isCode(err, code) {
			return nil, nil
		}
	}
	return interfaces, err
}
