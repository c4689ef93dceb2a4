package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// leaseHours is how long a lease of a reserved address is good for: no guest lives long
// enough to have to ask again, and what a host that lost power has left is gone some day.
const leaseHours = 14 * 24

// errNoReservation: libvirt does not let this user reserve addresses, or cannot.
var errNoReservation = errors.New("libvirt reserves no addresses")

// A claim is an address of a libvirt network that one machine alone has: libvirt's DHCP
// server has it reserved for the machine's MAC address.
//
// libvirt takes the firewall rules of a network down and sets them up again for each
// reservation that is added or removed (networkUpdate of its network driver), which
// costs a second, and for that time the network's guests are cut off. So reservations stay
// when their machine goes, for the next one.
type claim struct {
	address netip.Addr
	mac     string
	lock    *addressLock // until the machine runs, which speaks for itself then
}

// claimAddress finds an address for a machine on a network, and has it reserved. The
// error is an [errNoReservation] if that cannot be had here.
func (h *Host) claimAddress(ctx context.Context, plan *dhcpPlan, machine string) (*claim, error) {
	use, err := h.addressUse(ctx, plan)
	if err != nil {
		return nil, err
	}
	// The order of the candidates is fixed now; use goes on to say who has them.
	for _, address := range plan.candidates(machine, use) {
		mac := plan.macOf(address)
		lock, err := lockAddress(plan.uuid, mac)
		if err != nil {
			return nil, err
		}
		if lock == nil {
			use.running[mac] = true // or will soon
			continue
		}
		got, err := h.reserve(ctx, plan, address)
		if got {
			return &claim{address, mac, lock}, nil
		}
		use.running[mac] = true // since it was asked for, or it is leased to another
		if err = errors.Join(err, lock.unlock()); err != nil {
			return nil, err
		}
	}
	return nil, plan.full(use)
}

// full says that there is no address left, and why.
func (p *dhcpPlan) full(use addressUse) error {
	var jobs, reserved, leased int
	for n := range p.size() {
		a := p.at(n)
		mac := p.macOf(a)
		_, isReserved := p.hosts[a]
		lease, isLeased := use.leases[a]
		switch {
		case use.running[mac], p.isOurs(a):
			jobs++
		case isReserved:
			reserved++
		case isLeased && lease != mac:
			leased++
		}
	}
	return fmt.Errorf("network %s has no address left for another machine: of the %d that its DHCP server hands out, "+
		"machines of jobs have %d, %d are reserved for others and %d are leased to others "+
		"(virsh net-dhcp-leases %s; a wider <range> in virsh net-edit %s takes more machines)",
		p.network, p.size(), jobs, reserved, leased, p.network, p.network)
}

// reserve makes sure that an address, which is locked, is reserved for its MAC address and
// that no other machine has it; false if it cannot be had.
func (h *Host) reserve(ctx context.Context, plan *dhcpPlan, address netip.Addr) (bool, error) {
	// Asked with the lock held: whoever had it before is known by its domain now.
	running, err := h.runningMACs(ctx)
	if err != nil || running[plan.macOf(address)] {
		return false, err
	}
	if !plan.isOurs(address) {
		if ours, err := h.addReservation(ctx, plan, address); !ours {
			return false, err
		}
	}
	// Another may have been given it before it was reserved.
	leases, err := h.leases(ctx, plan.network)
	if err != nil {
		return false, err
	}
	if holder, ok := leaseHolders(leases)[address]; ok && holder != plan.macOf(address) {
		return false, h.dropReservation(ctx, plan, address)
	}
	return true, nil
}

// addReservation reserves an address; false if it is reserved for another.
func (h *Host) addReservation(ctx context.Context, plan *dhcpPlan, address netip.Addr) (bool, error) {
	err := h.updateReservation(ctx, libvirt.NETWORK_UPDATE_COMMAND_ADD_LAST, plan, address)
	if !isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return err == nil, err
	}
	// There is one by now: an earlier machine's, perhaps.
	described, derr := h.describeNetwork(ctx, plan.network)
	if derr != nil {
		return false, derr
	}
	now := planOf(described)
	if now == nil || now.hosts[address] == "" {
		return false, err
	}
	return now.isOurs(address), nil
}

func (h *Host) dropReservation(ctx context.Context, plan *dhcpPlan, address netip.Addr) error {
	err := h.updateReservation(ctx, libvirt.NETWORK_UPDATE_COMMAND_DELETE, plan, address)
	if isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return nil // it is gone
	}
	return err
}

// updateReservation changes the network as it runs, not its definition.
func (h *Host) updateReservation(ctx context.Context, command libvirt.NetworkUpdateCommand, plan *dhcpPlan, address netip.Addr) error {
	doc, err := (&libvirtxml.NetworkDHCPHost{
		MAC: plan.macOf(address), IP: address.String(),
		Lease: &libvirtxml.NetworkDHCPLease{Expiry: leaseHours, Unit: "hours"}, // libvirt 6.3
	}).Marshal()
	if err != nil {
		return err
	}
	_, err = onNetwork(ctx, h, plan.network, "reserve "+address.String()+" on network "+plan.network, func(n *libvirt.Network) (struct{}, error) {
		return struct{}{}, n.Update(command, libvirt.NETWORK_SECTION_IP_DHCP_HOST, plan.index, doc, libvirt.NETWORK_UPDATE_AFFECT_LIVE)
	})
	for _, code := range []libvirt.ErrorNumber{
		libvirt.ERR_NO_SUPPORT, libvirt.ERR_OPERATION_UNSUPPORTED, libvirt.ERR_OPERATION_DENIED, libvirt.ERR_AUTH_UNAVAILABLE, libvirt.ERR_ACCESS_DENIED,
	} {
		if isCode(err, code) {
			return fmt.Errorf("%w: %w", errNoReservation, err)
		}
	}
	return err
}

// onNetwork asks libvirt something about a network.
func onNetwork[T any](ctx context.Context, h *Host, network, what string, ask func(*libvirt.Network) (T, error)) (T, error) {
	return await(ctx, what, func() (none T, _ error) {
		n, err := h.conn.LookupNetworkByName(network)
		if err != nil {
			return none, err
		}
		defer n.Free()
		return ask(n)
	})
}

func (h *Host) leases(ctx context.Context, network string) ([]libvirt.NetworkDHCPLease, error) {
	return onNetwork(ctx, h, network, "ask for the leases of network "+network, (*libvirt.Network).GetDHCPLeases)
}

// addressUse asks who has which address.
func (h *Host) addressUse(ctx context.Context, plan *dhcpPlan) (use addressUse, err error) {
	leases, err := h.leases(ctx, plan.network)
	if err != nil {
		return use, err
	}
	use.leases = leaseHolders(leases)
	if use.running, err = h.runningMACs(ctx); err != nil {
		return use, err
	}
	use.neighbours = bridgeNeighbours(plan.bridge)
	return use, nil
}

// bridgeNeighbours are the machines that this host has heard of on a bridge: none if
// it cannot be known, since it only is a hint.
func bridgeNeighbours(bridge string) map[netip.Addr]string {
	device, err := net.InterfaceByName(bridge)
	if err != nil {
		return nil
	}
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	defer kernel.Close()
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		return nil
	}
	known, _ := neighbours(kernel, device.Index, false)
	return known
}

var macElement = regexp.MustCompile(`<mac address=['"]([0-9A-Fa-f:]{17})['"]`)

// runningMACs are the MAC addresses of the domains that run, whoever's.
func (h *Host) runningMACs(ctx context.Context) (map[string]bool, error) {
	return await(ctx, "ask for the MAC addresses of the domains", func() (map[string]bool, error) {
		domains, err := h.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return nil, err
		}
		macs := make(map[string]bool)
		for i := range domains {
			doc, xmlErr := domains[i].GetXMLDesc(0)
			domains[i].Free()
			if xmlErr != nil && !isCode(xmlErr, libvirt.ERR_NO_DOMAIN) { // it has just ended
				err = errors.Join(err, xmlErr)
			}
			for _, found := range macElement.FindAllStringSubmatch(doc, -1) {
				macs[strings.ToLower(found[1])] = true
			}
		}
		return macs, err
	})
}

// A nic is a network card of a domain on a libvirt network.
type nic struct{ network, mac string }

// nicsOf are the network cards of a domain that are on libvirt networks.
func nicsOf(ctx context.Context, dom *virt.Domain) ([]nic, error) {
	doc, err := dom.XML(ctx)
	if err != nil {
		return nil, err
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return nil, fmt.Errorf("read the domain's network cards: %w", err)
	}
	var nics []nic
	for _, i := range d.Devices.Interfaces {
		if i.Source != nil && i.Source.Network != nil && i.MAC != nil {
			nics = append(nics, nic{i.Source.Network.Network, strings.ToLower(i.MAC.Address)})
		}
	}
	return nics, nil
}

// giveBack gives back the addresses of a machine that is gone. Where it fails, the
// next machine of that address finds the lease, and can do with it; so it is no reason
// to fail.
func (h *Host) giveBack(ctx context.Context, nics []nic) {
	for _, nic := range nics {
		described, err := h.describeNetwork(ctx, nic.network)
		if err != nil {
			continue
		}
		plan := planOf(described)
		if plan == nil {
			continue
		}
		leases, err := h.leases(ctx, nic.network)
		if err != nil {
			continue
		}
		leases = slices.DeleteFunc(leases, func(l libvirt.NetworkDHCPLease) bool {
			if !strings.EqualFold(l.Mac, nic.mac) {
				return false
			}
			return releaseLease(plan, l) == nil
		})
		for address, mac := range plan.hosts {
			if mac == nic.mac && plan.isOurs(address) && plan.isScarce(addressUse{leases: leaseHolders(leases)}) {
				_, _ = h.dropIdle(ctx, plan, address)
			}
		}
	}
}

// dropIdle removes the reservation of an address that no machine has; false if one
// has it.
func (h *Host) dropIdle(ctx context.Context, plan *dhcpPlan, address netip.Addr) (bool, error) {
	lock, err := lockAddress(plan.uuid, plan.macOf(address))
	if err != nil || lock == nil {
		return false, err
	}
	defer lock.unlock()
	running, err := h.runningMACs(ctx)
	if err != nil || running[plan.macOf(address)] {
		return false, err
	}
	return true, h.dropReservation(ctx, plan, address)
}

// An IdleAddress is one of a libvirt network that is reserved for machines of jobs, and
// that none has.
type IdleAddress struct {
	Network string
	Address netip.Addr
}

// SweepAddresses gives back the addresses of libvirt networks that are reserved for
// machines of jobs and that none has now. With dryRun it only reports them, and those
// of the machines in going. It goes on after an error. An administrator's own
// reservations stay.
func SweepAddresses(ctx context.Context, h *Host, dryRun bool, going []record.InstanceInfo) ([]IdleAddress, error) {
	if !h.System() {
		return nil, nil
	}
	names, err := await(ctx, "list the networks", h.conn.ListNetworks)
	if isCode(err, libvirt.ERR_NO_SUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var idle []IdleAddress
	var failed []error
	for _, name := range names {
		found, err := h.sweepNetwork(ctx, name, dryRun, going)
		idle = append(idle, found...)
		if err != nil {
			failed = append(failed, fmt.Errorf("sweep the addresses of network %s: %w", name, err))
		}
	}
	return idle, errors.Join(failed...)
}

func (h *Host) sweepNetwork(ctx context.Context, network string, dryRun bool, going []record.InstanceInfo) (idle []IdleAddress, _ error) {
	described, err := h.describeNetwork(ctx, network)
	if err != nil {
		return nil, err
	}
	plan := planOf(described)
	if plan == nil {
		return nil, nil
	}
	running, err := h.runningMACs(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range going {
		for _, mac := range strings.Fields(m.Record.MAC) {
			delete(running, mac)
		}
	}
	leases, err := h.leases(ctx, network)
	if err != nil {
		return nil, err
	}
	for _, l := range leases { // of machines that were not ended by us
		a, err := netip.ParseAddr(l.IPaddr)
		if mac := strings.ToLower(l.Mac); err == nil && a.Is4() && mac == plan.macOf(a) && !running[mac] && !dryRun {
			_ = releaseLease(plan, l)
		}
	}
	for address := range plan.hosts {
		if !plan.isOurs(address) || running[plan.macOf(address)] {
			continue
		}
		dropped := dryRun
		if !dryRun {
			if dropped, err = h.dropIdle(ctx, plan, address); err != nil {
				return idle, err
			}
		}
		if dropped {
			idle = append(idle, IdleAddress{network, address})
		}
	}
	slices.SortFunc(idle, func(a, b IdleAddress) int { return a.Address.Compare(b.Address) })
	return idle, nil
}

// An addressLock is held by a process that is about to start a machine with an
// address, from when it chose it until libvirt knows the machine. It is an abstract
// socket (unix(7)): all users of the host see it, and it goes with its process,
// however that ends.
type addressLock struct{ fd int }

// lockAddress locks a MAC address of a network; nil if another has it.
func lockAddress(network, mac string) (*addressLock, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("lock the address "+mac, err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@gitlab-sardine-executor/" + network + "/" + mac})
	if err == nil {
		return &addressLock{fd}, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, nil
	}
	return nil, os.NewSyscallError("lock the address "+mac, err)
}

func (l *addressLock) unlock() error {
	if l.fd < 0 {
		return nil
	}
	fd := l.fd
	l.fd = -1
	return unix.Close(fd)
}
