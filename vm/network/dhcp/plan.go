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

// candidatesMax is the maximum number of free addresses to consider for one machine: a network
// can have millions.
const candidatesMax = 1024

// A Plan describes the IPv4 addresses that libvirt's DHCP server assigns on a network.
type Plan struct {
	network, uuid, bridge string
	gateway               netip.Addr
	gatewayMAC            string
	index                 int // of the <ip> element in the network's definition
	ranges                []addressRange
	hosts                 map[netip.Addr]string // reserved addresses, with their MAC addresses
}

type addressRange struct{ first, last netip.Addr }

// PlanOf reads the definition of a network; nil if libvirt assigns no IPv4 addresses on it.
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

// macOf returns the MAC address for an address: all machines that get the address have it.
// dnsmasq assigns an address that is reserved for a MAC address also to a client with
// another client identifier than that in the current lease (config_has_mac in its
// rfc2131.c). A lease that outlives its machine therefore does not block the address. The MAC
// address also marks reservations of this program.
func (p *Plan) macOf(address netip.Addr) string {
	salt, a := sha256.Sum256([]byte(p.uuid)), address.As4()
	// QEMU's prefix and the low 24 bits of the address, changed for each network.
	return net.HardwareAddr{0x52, 0x54, 0x00, a[1] ^ salt[0], a[2] ^ salt[1], a[3] ^ salt[2]}.String()
}

// RandomMAC returns a MAC address for a machine without a reserved address.
func RandomMAC() string {
	mac := net.HardwareAddr{0x52, 0x54, 0x00, 0, 0, 0}
	rand.Read(mac[3:]) // never fails (crypto/rand)
	return mac.String()
}

// isOurs reports whether a reservation was made by this program.
func (p *Plan) isOurs(address netip.Addr) bool { return p.hosts[address] == p.macOf(address) }

func (r addressRange) size() uint64 {
	return uint64(number(r.last)) - uint64(number(r.first)) + 1
}

// size returns the number of addresses.
func (p *Plan) size() (n uint64) {
	for _, r := range p.ranges {
		n += r.size()
	}
	return n
}

// at returns the n-th address.
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

// addressUse describes the use of the addresses of a network.
type addressUse struct {
	leases     map[netip.Addr]string // MAC addresses with a lease
	neighbours map[netip.Addr]string // MAC addresses that this host knows
	running    map[string]int        // MAC addresses of running domains
}

// candidates returns the addresses that a machine can have, the best first: idle reservations
// of this program, then addresses that the last machine did not release, then free ones,
// first those that are not in the neighbour table. The order depends on the name of the
// machine, so that concurrent starts try different addresses first.
func (p *Plan) candidates(machine string, use addressUse) []netip.Addr {
	const reserved, leased, free, heard = 0, 1, 2, 3
	rank := make(map[netip.Addr]int)
	consider := func(a netip.Addr) {
		mac := p.macOf(a)
		holder, isReserved := p.hosts[a]
		lease, isLeased := use.leases[a]
		neighbour, isHeard := use.neighbours[a]
		switch {
		case use.running[mac] > 0, mac == p.gatewayMAC, a == p.gateway:
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

// offset distributes machines by their names.
func offset(machine string) uint64 {
	h := fnv.New32a()
	h.Write([]byte(machine))
	return uint64(h.Sum32())
}

// isScarce reports whether half of the addresses are taken. Reservations are then removed with
// their machines.
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

// Holders returns the MAC addresses of the IPv4 leases.
func Holders(leases []virt.Lease) map[netip.Addr]string {
	holders := make(map[netip.Addr]string)
	for _, l := range leases {
		if a, err := netip.ParseAddr(l.IP); err == nil && a.Is4() {
			holders[a] = strings.ToLower(l.MAC)
		}
	}
	return holders
}
