package dhcp

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/virt"
)

// candidatesMax bounds how many free addresses are looked at for one machine: the
// range of a network can have millions.
const candidatesMax = 1024

// A Plan is what libvirt's own DHCP server hands out by IPv4 on one network.
type Plan struct {
	network, uuid, bridge string
	gateway               netip.Addr
	gatewayMAC            string
	index                 int // of the <ip> in the network's definition
	ranges                []addressRange
	hosts                 map[netip.Addr]string // MAC addresses for which addresses are reserved
}

type addressRange struct{ first, last netip.Addr }

// PlanOf reads a network's definition; nil if libvirt hands out no IPv4 addresses there.
func PlanOf(n *libvirtxml.Network) *Plan {
	for i, ip := range n.IPs {
		gateway, err := netip.ParseAddr(ip.Address)
		if err != nil || !gateway.Is4() || ip.DHCP == nil {
			continue
		}
		p := &Plan{network: n.Name, uuid: n.UUID, gateway: gateway, index: i, hosts: make(map[netip.Addr]string)}
		if n.Bridge != nil {
			p.bridge = n.Bridge.Name
		}
		if n.MAC != nil {
			p.gatewayMAC = strings.ToLower(n.MAC.Address)
		}
		for _, r := range ip.DHCP.Ranges {
			first, err := netip.ParseAddr(r.Start)
			last, err2 := netip.ParseAddr(r.End)
			if err == nil && err2 == nil && first.Is4() && last.Is4() && !last.Less(first) {
				p.ranges = append(p.ranges, addressRange{first, last})
			}
		}
		for _, host := range ip.DHCP.Hosts {
			if address, err := netip.ParseAddr(host.IP); err == nil {
				p.hosts[address] = strings.ToLower(host.MAC)
			}
		}
		if len(p.ranges) > 0 {
			return p
		}
	}
	return nil
}

// macOf is the MAC address of every machine that has this address. dnsmasq gives an
// address that is reserved for a MAC address also to a client that names itself
// otherwise than the last one of that MAC address did (config_has_mac in its
// rfc2131.c): so a lease that outlives its machine is in the way of none. It also is
// how a reservation is known to be ours.
func (p *Plan) macOf(address netip.Addr) string {
	salt, a := sha256.Sum256([]byte(p.uuid)), address.As4()
	// QEMU's prefix, then 24 bits in which the addresses of a network differ.
	return net.HardwareAddr{0x52, 0x54, 0x00, a[1] ^ salt[0], a[2] ^ salt[1], a[3] ^ salt[2]}.String()
}

// RandomMAC is a MAC address for a machine that has no address of its own.
func RandomMAC() string {
	mac := net.HardwareAddr{0x52, 0x54, 0x00, 0, 0, 0}
	rand.Read(mac[3:]) // never fails (crypto/rand)
	return mac.String()
}

// isOurs says whether a reservation was made by this program.
func (p *Plan) isOurs(address netip.Addr) bool { return p.hosts[address] == p.macOf(address) }

func (r addressRange) size() uint64 {
	return uint64(number(r.last)) - uint64(number(r.first)) + 1
}

// size is how many addresses the plan has.
func (p *Plan) size() (n uint64) {
	for _, r := range p.ranges {
		n += r.size()
	}
	return n
}

// at is the address of that number, of those that the plan has.
func (p *Plan) at(n uint64) netip.Addr {
	for _, r := range p.ranges {
		if n < r.size() {
			return address4(number(r.first) + uint32(n))
		}
		n -= r.size()
	}
	return netip.Addr{}
}

func number(a netip.Addr) uint32 {
	four := a.As4()
	return binary.BigEndian.Uint32(four[:])
}

func address4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// addressUse is who has which address of a network.
type addressUse struct {
	leases     map[netip.Addr]string // MAC addresses that have a lease
	neighbours map[netip.Addr]string // MAC addresses that this host has heard of
	running    map[string]bool       // MAC addresses of the domains that run
}

// candidates are the addresses that a machine can have, the best first: those that are
// reserved for machines of jobs already, and have none; those that the last machine did
// not give back; then free ones, first those of which this host has heard nothing. The
// order differs from machine to machine: of two that start at once, each has its own.
func (p *Plan) candidates(machine string, use addressUse) []netip.Addr {
	const reserved, leased, free, heard = 0, 1, 2, 3
	rank := make(map[netip.Addr]int)
	consider := func(a netip.Addr) {
		mac := p.macOf(a)
		holder, isReserved := p.hosts[a]
		lease, isLeased := use.leases[a]
		neighbour, isHeard := use.neighbours[a]
		switch {
		case use.running[mac], mac == p.gatewayMAC, a == p.gateway:
		case isReserved && holder != mac, isLeased && lease != mac:
		case isReserved:
			rank[a] = reserved
		case isLeased:
			rank[a] = leased
		case isHeard && neighbour != mac:
			rank[a] = heard
		default:
			rank[a] = free
		}
	}
	for _, known := range []map[netip.Addr]string{p.hosts, use.leases} {
		for a := range known {
			if p.has(a) {
				consider(a)
			}
		}
	}
	size := p.size()
	start := offset(machine) % size
	for n := uint64(0); n < size && len(rank) < candidatesMax; n++ {
		consider(p.at((start + n) % size))
	}
	found := make([]netip.Addr, 0, len(rank))
	for a := range rank {
		found = append(found, a)
	}
	turn := func(a netip.Addr) uint32 { return number(a) - number(p.at(start)) } // modulo 2^32
	slices.SortFunc(found, func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(turn(a), turn(b)))
	})
	return found
}

// offset spreads machines by their names.
func offset(machine string) uint64 {
	h := fnv.New32a()
	h.Write([]byte(machine))
	return uint64(h.Sum32())
}

// isScarce says whether half of the addresses are taken, so that a reservation is
// better given back at once.
func (p *Plan) isScarce(use addressUse) bool {
	taken := make(map[netip.Addr]bool)
	for _, set := range []map[netip.Addr]string{p.hosts, use.leases} {
		for a := range set {
			if p.has(a) {
				taken[a] = true
			}
		}
	}
	return 2*uint64(len(taken)) > p.size()
}

func (p *Plan) has(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(r addressRange) bool { return !a.Less(r.first) && !r.last.Less(a) })
}

// Holders are the MAC addresses of the leases of IPv4 addresses.
func Holders(leases []virt.Lease) map[netip.Addr]string {
	holders := make(map[netip.Addr]string)
	for _, l := range leases {
		if a, err := netip.ParseAddr(l.IP); err == nil && a.Is4() {
			holders[a] = strings.ToLower(l.MAC)
		}
	}
	return holders
}
