package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// leaseHours is the duration of a lease of a reserved address. It is longer than guests live,
// and bounded for leases that remain after a power loss.
const leaseHours = 14 * 24

// ErrNoReservation: libvirt does not support reservations, or denies them to this user.
var ErrNoReservation = errors.New("libvirt reserves no addresses")

// A Reservation is an address of a libvirt network that only one machine has: libvirt's DHCP
// server reserves it for the MAC address of the machine.
//
// When a reservation is added or removed, libvirt removes the firewall rules of the network
// and adds them again (networkUpdate of its network driver). That takes a second, in which
// the guests are disconnected. Reservations are therefore kept for later machines.
type Reservation struct {
	Address netip.Addr
	MAC     string
	lock    *addressLock // until the machine runs, and so is known by its domain
}

// Claim finds and reserves an address for a machine. The error is an [ErrNoReservation] if
// there are no reservations on this host.
func Claim(ctx context.Context, h *virt.Host, plan *Plan, machine string) (*Reservation, error) {
	use, err := currentUse(ctx, h, plan)
	if err != nil {
		return nil, err
	}
	// The order of the candidates does not change; use is updated.
	for _, address := range plan.candidates(machine, use) {
		mac := plan.macOf(address)
		lock, err := newLock(plan.uuid, mac)
		if err != nil {
			return nil, err
		}
		if lock == nil {
			use.running[mac]++ // its machine is about to start
			continue
		}
		got, err := reserve(ctx, h, plan, address)
		if got {
			return &Reservation{address, mac, lock}, nil
		}
		use.running[mac]++ // a machine has taken it, or it is leased to another client
		if err = errors.Join(err, lock.unlock()); err != nil {
			return nil, err
		}
	}
	return nil, plan.full(use)
}

// Unlock releases the lock on the address, when libvirt knows the machine or its start has
// failed.
func (r *Reservation) Unlock() error { return r.lock.unlock() }

// CheckSole returns an error if another running machine has the MAC address, and with it the
// IP address. The lock prevents that, unless the other machine was started by a driver in
// another network namespace, which does not see it.
func (r *Reservation) CheckSole(ctx context.Context, h *virt.Host) error {
	running, err := h.RunningMACs(ctx)
	if err == nil && running[r.MAC] > 1 {
		err = fmt.Errorf("two machines were started at once with the address %s (%s): do drivers in different network namespaces use this libvirt?", r.Address, r.MAC)
	}
	return err
}

// full returns the error for a network without a free address.
func (p *Plan) full(use addressUse) error {
	var jobs, reserved, leased int
	for n := range p.size() {
		a := p.at(n)
		mac := p.macOf(a)
		_, isReserved := p.hosts[a]
		lease, isLeased := use.leases[a]
		switch {
		case use.running[mac] > 0, p.isOurs(a):
			jobs++
		case isReserved:
			reserved++
		case isLeased && lease != mac:
			leased++
		}
	}
	return fmt.Errorf("network %s has no address left for another machine: of the %d that its DHCP server assigns, "+
		"machines of jobs have %d, %d are reserved for others and %d are leased to others "+
		"(virsh net-dhcp-leases %s; a wider <range> in virsh net-edit %s takes more machines)",
		p.network, p.size(), jobs, reserved, leased, p.network, p.network)
}

// reserve reserves a locked address for its MAC address, and checks that no other machine has
// it; false if one has.
func reserve(ctx context.Context, h *virt.Host, plan *Plan, address netip.Addr) (bool, error) {
	// Checked with the lock held: a machine that had it before is known by its domain now.
	running, err := h.RunningMACs(ctx)
	if err != nil || running[plan.macOf(address)] > 0 {
		return false, err
	}
	// So is the reservation: a sweep may have removed it since the network was looked up.
	reserved := plan.isOurs(address)
	if reserved {
		if reserved, err = isReserved(ctx, h, plan, address); err != nil {
			return false, err
		}
	}
	if !reserved {
		if ours, err := addReservation(ctx, h, plan, address); !ours {
			return false, err
		}
	}
	// The address may have been leased to another client before it was reserved.
	leases, err := h.Leases(ctx, plan.network)
	if err != nil {
		return false, err
	}
	if holder, ok := Holders(leases)[address]; ok && holder != plan.macOf(address) {
		return false, dropReservation(ctx, h, plan, address)
	}
	return true, nil
}

// isReserved looks up whether the address is reserved for its MAC address now.
func isReserved(ctx context.Context, h *virt.Host, plan *Plan, address netip.Addr) (bool, error) {
	described, err := h.Network(ctx, plan.network)
	if err != nil {
		return false, err
	}
	now := PlanOf(described)
	return now != nil && now.isOurs(address), nil
}

// addReservation reserves an address; false if it is reserved for another MAC address.
func addReservation(ctx context.Context, h *virt.Host, plan *Plan, address netip.Addr) (bool, error) {
	err := h.AddReservation(ctx, plan.network, plan.index, plan.reservation(address))
	if errors.Is(err, virt.ErrUnsupported) {
		err = fmt.Errorf("%w: %w", ErrNoReservation, err)
	}
	if !virt.IsOperationInvalid(err) {
		return err == nil, err
	}
	// There is a reservation by now, possibly that of an earlier machine.
	described, derr := h.Network(ctx, plan.network)
	if derr != nil {
		return false, derr
	}
	now := PlanOf(described)
	if now == nil || now.hosts[address] == "" {
		return false, err
	}
	return now.isOurs(address), nil
}

func dropReservation(ctx context.Context, h *virt.Host, plan *Plan, address netip.Addr) error {
	return h.DropReservation(ctx, plan.network, plan.index, plan.reservation(address))
}

// reservation returns the reservation of an address for its MAC address.
func (p *Plan) reservation(address netip.Addr) *libvirtxml.NetworkDHCPHost {
	return &libvirtxml.NetworkDHCPHost{
		MAC: p.macOf(address), IP: address.String(),
		Lease: &libvirtxml.NetworkDHCPLease{Expiry: leaseHours, Unit: "hours"}, // libvirt 6.3
	}
}

// currentUse returns the current use of the addresses.
func currentUse(ctx context.Context, h *virt.Host, plan *Plan) (use addressUse, err error) {
	leases, err := h.Leases(ctx, plan.network)
	if err != nil {
		return use, err
	}
	use.leases = Holders(leases)
	if use.running, err = h.RunningMACs(ctx); err != nil {
		return use, err
	}
	use.neighbours = bridgeNeighbours(plan.bridge)
	return use, nil
}

// A NIC is a network interface of a domain on a libvirt network.
type NIC struct{ Network, MAC string }

// NICs returns the network interfaces of a domain that are on libvirt networks.
func NICs(ctx context.Context, dom *virt.Domain) ([]NIC, error) {
	doc, err := dom.XML(ctx)
	if err != nil {
		return nil, err
	}
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(doc); err != nil {
		return nil, fmt.Errorf("read the network interfaces of the domain: %w", err)
	}
	var nics []NIC
	for _, i := range d.Devices.Interfaces {
		if i.Source != nil && i.Source.Network != nil && i.MAC != nil {
			nics = append(nics, NIC{i.Source.Network.Network, strings.ToLower(i.MAC.Address)})
		}
	}
	return nics, nil
}

// GiveBack releases the addresses of a machine that has ended. It ignores errors: the next
// machine with the address can use the lease.
func GiveBack(ctx context.Context, h *virt.Host, nics []NIC) {
	for _, nic := range nics {
		described, err := h.Network(ctx, nic.Network)
		if err != nil {
			continue
		}
		plan := PlanOf(described)
		if plan == nil {
			continue
		}
		leases, err := h.Leases(ctx, nic.Network)
		if err != nil {
			continue
		}
		leases = slices.DeleteFunc(leases, func(l virt.Lease) bool {
			if !strings.EqualFold(l.MAC, nic.MAC) {
				return false
			}
			return releaseLease(plan, l) == nil
		})
		for address, mac := range plan.hosts {
			if mac == nic.MAC && plan.isOurs(address) && plan.isScarce(addressUse{leases: Holders(leases)}) {
				_, _ = dropIdle(ctx, h, plan, address)
			}
		}
	}
}

// dropIdle removes the reservation of an address unless a machine has it.
func dropIdle(ctx context.Context, h *virt.Host, plan *Plan, address netip.Addr) (bool, error) {
	lock, err := newLock(plan.uuid, plan.macOf(address))
	if err != nil || lock == nil {
		return false, err
	}
	defer lock.unlock()
	running, err := h.RunningMACs(ctx)
	if err != nil || running[plan.macOf(address)] > 0 {
		return false, err
	}
	return true, dropReservation(ctx, h, plan, address)
}

// An IdleAddress is an address that is reserved for machines of jobs, and that no machine has.
type IdleAddress struct {
	Network string
	Address netip.Addr
}

// Sweep releases the idle addresses of all libvirt networks and returns them. With dryRun it
// only reports them, and those of the machines in going. It continues after an error. It
// does not remove reservations of the administrator.
func Sweep(ctx context.Context, h *virt.Host, dryRun bool, going []record.InstanceInfo) ([]IdleAddress, error) {
	if !h.System() {
		return nil, nil
	}
	names, err := h.Networks(ctx)
	if err != nil {
		return nil, err
	}
	var idle []IdleAddress
	var failed []error
	for _, name := range names {
		found, err := sweepNetwork(ctx, h, name, dryRun, going)
		idle = append(idle, found...)
		if err != nil {
			failed = append(failed, fmt.Errorf("sweep the addresses of network %s: %w", name, err))
		}
	}
	return idle, errors.Join(failed...)
}

func sweepNetwork(ctx context.Context, h *virt.Host, network string, dryRun bool, going []record.InstanceInfo) (idle []IdleAddress, _ error) {
	described, err := h.Network(ctx, network)
	if err != nil {
		return nil, err
	}
	plan := PlanOf(described)
	if plan == nil {
		return nil, nil
	}
	running, err := h.RunningMACs(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range going {
		for _, mac := range strings.Fields(m.Record.MAC) {
			delete(running, mac)
		}
	}
	leases, err := h.Leases(ctx, network)
	if err != nil {
		return nil, err
	}
	for _, l := range leases { // of machines that ended by themselves
		a, err := netip.ParseAddr(l.IP)
		if mac := strings.ToLower(l.MAC); err == nil && a.Is4() && mac == plan.macOf(a) && running[mac] == 0 && !dryRun {
			_ = releaseLease(plan, l)
		}
	}
	for address := range plan.hosts {
		if !plan.isOurs(address) || running[plan.macOf(address)] > 0 {
			continue
		}
		dropped := dryRun
		if !dryRun {
			if dropped, err = dropIdle(ctx, h, plan, address); err != nil {
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

// An addressLock is held by a process that starts a machine, from its choice of the address
// until libvirt knows the machine. It is an abstract socket (unix(7)): all users of the host
// see it, and it disappears with its process.
type addressLock struct{ fd int }

// newLock locks a MAC address of a network; nil if another process holds the lock.
func newLock(network, mac string) (*addressLock, error) {
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
