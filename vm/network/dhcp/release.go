package dhcp

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/vm/virt"
)

// releaseLease releases a lease as its client would (DHCPRELEASE, RFC 2131). The DHCP server
// sends no answer.
func releaseLease(plan *Plan, lease virt.Lease) error {
	message, err := releaseMessage(plan.gateway, lease)
	if err != nil {
		return err
	}
	// The server is on this host and does not listen on the loopback device. Through a socket
	// bound to the bridge, the message arrives on the bridge.
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), plan.bridge) })
		if err == nil {
			err = failed
		}
		return err
	}}
	conn, err := dialer.DialContext(context.Background(), "udp4", netip.AddrPortFrom(plan.gateway, 67).String())
	if err != nil {
		return fmt.Errorf("release the lease of %s: %w", lease.IP, err)
	}
	defer conn.Close()
	if _, err := conn.Write(message); err != nil {
		return fmt.Errorf("release the lease of %s: %w", lease.IP, err)
	}
	return nil
}

// releaseMessage returns the DHCPRELEASE message (RFC 2131, sections 2 and 4.4.6; options of
// RFC 2132).
func releaseMessage(server netip.Addr, lease virt.Lease) ([]byte, error) {
	const request, ethernet, release = 1, 1, 7
	const optionType, optionServer, optionClient, optionEnd = 53, 54, 61, 255
	address, err := netip.ParseAddr(lease.IP)
	if err != nil || !address.Is4() {
		return nil, fmt.Errorf("a lease of %q cannot be released: it is not an IPv4 address", lease.IP)
	}
	mac, err := net.ParseMAC(lease.MAC)
	if err != nil || len(mac) != 6 {
		return nil, fmt.Errorf("the lease of %s has no MAC address: %q", lease.IP, lease.MAC)
	}
	client, err := hex.DecodeString(strings.ReplaceAll(lease.ClientID, ":", ""))
	if err != nil || len(client) > 255 {
		return nil, fmt.Errorf("the lease of %s has no client identifier: %q", lease.IP, lease.ClientID)
	}
	message := make([]byte, 236, 300)
	message[0], message[1], message[2] = request, ethernet, byte(len(mac))
	copy(message[12:], address.AsSlice()) // ciaddr
	copy(message[28:], mac)               // chaddr
	message = append(message, 99, 130, 83, 99, optionType, 1, release, optionServer, 4)
	message = append(message, server.AsSlice()...)
	if len(client) > 0 {
		message = append(append(message, optionClient, byte(len(client))), client...)
	}
	message = append(message, optionEnd)
	return append(message, make([]byte, max(0, 300-len(message)))...), nil // the minimum length of BOOTP
}
