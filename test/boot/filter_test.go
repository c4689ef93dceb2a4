//go:build boot

package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A sniffer sees what comes over the bridge to the host.
type sniffer struct {
	fd     int
	mu     sync.Mutex
	frames [][]byte
}

// sniff listens on a network device until the test's end.
func sniff(t *testing.T, device string) *sniffer {
	t.Helper()
	nic, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	const every = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, every)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: nic.Index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
	); err != nil {
		t.Fatal(err)
	}
	s := &sniffer{fd: fd}
	var running sync.WaitGroup
	running.Go(func() {
		for buffer := make([]byte, 1<<16); t.Context().Err() == nil; {
			if n, _, err := unix.Recvfrom(fd, buffer, 0); err == nil && n >= 14 {
				s.mu.Lock()
				s.frames = append(s.frames, bytes.Clone(buffer[:n]))
				s.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { running.Wait(); unix.Close(fd) })
	return s
}

// saw says whether a frame matched.
func (s *sniffer) saw(match func(frame []byte) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, frame := range s.frames {
		if match(frame) {
			return true
		}
	}
	return false
}

func etherType(frame []byte) int { return int(binary.BigEndian.Uint16(frame[12:])) }

// The frames that a trick makes.
func fromMAC(mac string) func([]byte) bool {
	address, _ := net.ParseMAC(mac)
	return func(frame []byte) bool { return bytes.Equal(frame[6:12], address) }
}

func arpOf(ip string) func([]byte) bool { // the sender's IP address, RFC 826
	address := netip.MustParseAddr(ip).AsSlice()
	return func(frame []byte) bool {
		return etherType(frame) == unix.ETH_P_ARP && len(frame) >= 32 && bytes.Equal(frame[28:32], address)
	}
}

func ipFrom(ip string) func([]byte) bool { return ipAt(26, ip) }
func ipTo(ip string) func([]byte) bool   { return ipAt(30, ip) }

// ipAt looks for an address at its place in an Ethernet frame with an IPv4 packet,
// RFC 791.
func ipAt(offset int, ip string) func([]byte) bool {
	address := netip.MustParseAddr(ip).AsSlice()
	return func(frame []byte) bool {
		return etherType(frame) == unix.ETH_P_IP && len(frame) >= 34 && bytes.Equal(frame[offset:offset+4], address)
	}
}

// checkFilter has a guest send what is from an address that is not its own, what is neither
// IPv4 nor ARP, and what is for another guest, be it by way of the gateway: it does not get
// as far as the bridge. The guest's user is root.
func checkFilter(t *testing.T, l *lab, guest instance) {
	t.Helper()
	own, gateway := addressIn(t, guest)
	// last is where the guest's last frame goes (RFC 5737). Those before it have come then.
	const otherMAC, last = "52:54:00:00:00:01", "203.0.113.9"
	// Addresses that are not the guest's own, which can be any of the network. The
	// gateway would pass on what is for the neighbour.
	free := slices.DeleteFunc([]string{"192.168.122.250", "192.168.122.251", "192.168.122.252"}, func(a string) bool { return a == own })
	other, neighbour := free[0], free[1]
	s := sniff(t, "virbr0")
	// A guest with another MAC address cannot answer us, so that all is one script
	// that puts everything back.
	out, _ := script(t, guest, fmt.Sprintf(`exec 2>&1
ping -c 1 -W 1 %[2]s
arping -c 1 -w 1 -I eth0 %[2]s
ping -c 1 -W 1 %[5]s
ip route add %[6]s/32 via %[2]s && echo routed
ping -c 1 -W 1 %[6]s
ip route del %[6]s/32
ip addr add %[3]s/24 dev eth0
arping -c 1 -w 1 -U -I eth0 %[3]s
ip route add %[2]s/32 dev eth0 src %[3]s
ping -c 1 -W 1 %[2]s
ip route del %[2]s/32
ip addr del %[3]s/24 dev eth0
mac=$(cat /sys/class/net/eth0/address)
host=$(grep '^%[2]s ' /proc/net/arp | grep -o '..:..:..:..:..:..')
ip link set eth0 address %[4]s && arp -s %[2]s $host && echo changed
ping -c 1 -W 1 %[2]s
ip link set eth0 address $mac
arp -d %[2]s
ping -c 1 -W 1 %[7]s
`, own, gateway, other, otherMAC, hostAddress, neighbour, last))
	if !strings.Contains(out, "changed") {
		t.Fatalf("the guest cannot change its MAC address:\n%s", out)
	}
	if !strings.Contains(out, "routed") {
		t.Fatalf("the guest cannot change its routes:\n%s", out)
	}
	for began := time.Now(); !s.saw(ipTo(last)); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("the guest's last frame does not come:\n%s", out)
		}
	}
	for name, match := range map[string]func([]byte) bool{"IP": ipFrom(own), "ARP": arpOf(own)} {
		if !s.saw(match) {
			t.Errorf("nothing came by %s from the guest's own address, so that the rest shows nothing:\n%s", name, out)
		}
	}
	if !s.saw(ipTo(hostAddress)) {
		t.Errorf("nothing came by way of the gateway, so that the rest shows nothing:\n%s", out)

	}
	for name, match := range map[string]func([]byte) bool{
		"by IP from another address":   ipFrom(other),
		"by ARP about another address": arpOf(other),
		"from another MAC address":     fromMAC(otherMAC),
		"for another guest":            ipTo(neighbour),
		"that is neither IPv4 nor ARP": func(f []byte) bool {
			return fromMAC(nicOf(t, l, guest.Name()))(f) && etherType(f) != unix.ETH_P_IP && etherType(f) != unix.ETH_P_ARP
		},
	} {
		if s.saw(match) {
			t.Errorf("something came %s", name)
		}
	}
}

// nicOf is the MAC address of a machine.
func nicOf(t *testing.T, l *lab, name string) string {
	t.Helper()
	for _, field := range strings.Fields(l.virsh(t, "domiflist", name)) {
		if _, err := net.ParseMAC(field); err == nil {
			return field
		}
	}
	t.Fatalf("%s has no NIC", name)
	return ""
}
