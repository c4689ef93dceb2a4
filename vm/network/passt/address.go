package passt

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os/exec"
	"slices"
)

// The addresses of a guest that reaches the host. It is alone in its network, so that all
// guests have the same ones. They must not be those of anything that a guest may want to
// reach: the IPv4 addresses are reserved for hosts that translate addresses for themselves
// (RFC 7335), the prefix is a unique local one of this program (RFC 4193).
const (
	ownIPv4    = "192.0.0.2"
	ownGateway = "192.0.0.1"
	ownMask    = "255.255.255.248"
	ownIPv6    = "fd95:3c51:7a0e:1::2"
)

// addressOptions returns the options of passt for a guest with an address of its own. Without
// them, passt gives the guest a copy of the host's address, and what the guest sends there
// stays in the guest. The guest needs IPv6 only if the host has it.
//
// Newer versions of passt have --map-guest-addr for another address that leads to the host.
// The version of Debian 12 does not, and names that lead to the host's address would have
// to be changed for it.
func addressOptions(host []string) []string {
	options := []string{"--address", ownIPv4, "--netmask", ownMask, "--gateway", ownGateway}
	for _, text := range host {
		if address, err := netip.ParseAddr(text); err == nil && address.Is6() {
			options = append(options, "--address", ownIPv6)
		}
	}
	return options
}

// GuestAddresses returns the addresses that passt gives to a guest.
func GuestAddresses(hostAccess bool) []string {
	if !hostAccess {
		return HostAddresses()
	}
	return addressOptions(HostAddresses())
}

// HostAddresses returns the host's source addresses for outgoing connections, which passt
// gives to its guests unless they are to reach the host. It sends nothing.
func HostAddresses() []string {
	var addresses []string
	for _, somewhere := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // RFC 5737, RFC 3849
		conn, err := net.Dial("udp", somewhere)
		if err != nil {
			continue // no address of this family
		}
		addresses = append(addresses, conn.LocalAddr().(*net.UDPAddr).IP.String())
		conn.Close()
	}
	return addresses
}

// BlocksLoopback reports whether this passt drops what a guest sends to the host's loopback
// address. That of Debian 13 (May 2025) does, that of Debian 12 (March 2023) does not. Debian's
// builds do not say their version, so an option of later versions decides; one from between
// that drops these packets is taken for one that does not.
func BlocksLoopback(ctx context.Context, program string) bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	help, err := exec.CommandContext(ctx, program, "--help").CombinedOutput()
	return err == nil && bytes.Contains(help, []byte("--map-host-loopback"))
}

// HostAt returns the address of a host by that name which is also this host's, and which passt
// gives to guests; empty if there is none.
func HostAt(ctx context.Context, name string) string {
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return ""
	}
	own := HostAddresses()
	for _, address := range addresses {
		if slices.Contains(own, address) {
			return address
		}
	}
	return ""
}
