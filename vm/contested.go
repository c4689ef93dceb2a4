package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrContested: another machine than this one answers at the address of its guest, or
// it is not known which one does. What is for a guest, be it a password, is given to
// no other.
var ErrContested = errors.New("the guest's address is contested")

// verify makes sure that the connection which the guest's SSH server has just
// accepted leads to this machine. Host key and password, which an image can bring,
// do not tell its machines apart. It is asked when the connection stands: then this host
// has heard from the other end, and if that was another machine, the kernel knows it by
// its MAC address. The machine must still run: when it has ended, its address can be
// another's.
func (g *Guest) verify(ctx context.Context) error {
	at, err := netip.ParseAddrPort(g.record.Address)
	if err != nil {
		return fmt.Errorf("machine %s: its record has no address of SSH: %w", g.name, err)
	}
	if at.Addr().IsLoopback() {
		err = checkForwarder(g.jobDir)
	} else {
		err = g.checkNeighbour(ctx, at.Addr())
	}
	if err != nil {
		return err
	}
	return g.alive(ctx)
}

// checkForwarder makes sure that the port on 127.0.0.1 is forwarded by the passt of the
// machine with that directory, which has held it since before the machine ran. Without
// passt it is forwarded by the machine's own QEMU.
func checkForwarder(jobDir string) error {
	note, err := readPasstNote(passtNotePath(jobDir))
	if note == nil && err == nil {
		return nil
	}
	if err == nil && !note.runs() {
		err = errPasstEnded
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrContested, err)
	}
	return nil
}

// checkNeighbour makes sure that the address is that of one of the machine's own NICs.
func (g *Guest) checkNeighbour(ctx context.Context, address netip.Addr) error {
	own := strings.Fields(g.record.MAC)
	if len(own) == 0 { // made by an older version of this program
		nics, err := nicsOf(ctx, g.dom)
		if err != nil {
			return err
		}
		for _, nic := range nics {
			own = append(own, nic.mac)
		}
	}
	mac, onLink, err := neighbour(address)
	switch {
	case err != nil:
		return fmt.Errorf("%w: find out which machine has %s: %w", ErrContested, address, err)
	case !onLink:
		return nil // behind a router, which alone knows
	case !slices.Contains(own, mac):
		return fmt.Errorf("%w: %s belongs to machine %s (%s), but %s answers there", ErrContested, address, g.name, strings.Join(own, ", "), mac)
	}
	return nil
}

// heardOf are the states in which an entry of the table of neighbours has an
// address that was true not long ago (NUD_VALID of the kernel, without NOARP).
const heardOf = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT

// neighbour is the MAC address that the kernel has for an address; onLink is false if
// the way there leads over a router. Every user may ask.
func neighbour(address netip.Addr) (mac string, onLink bool, err error) {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", false, err
	}
	defer kernel.Close()
	if err := kernel.SetSocketTimeout(netlinkTimeout); err != nil {
		return "", false, err
	}
	ip := address.Unmap().AsSlice()
	routes, err := kernel.RouteGet(ip)
	if err != nil {
		return "", false, err
	}
	if len(routes) == 0 || routes[0].Gw != nil || routes[0].Via != nil {
		return "", false, nil
	}
	known, err := neighbours(kernel, routes[0].LinkIndex, address.Unmap().Is6())
	if err != nil {
		return "", true, err
	}
	if n, ok := known[address.Unmap()]; ok {
		return n, true, nil
	}
	return "", true, errors.New("the kernel has no entry in its table of neighbours (ip neigh)")
}

// neighbours are the MAC addresses that the kernel has heard of on a device.
func neighbours(kernel *netlink.Handle, device int, ipv6 bool) (map[netip.Addr]string, error) {
	family := netlink.FAMILY_V4
	if ipv6 {
		family = netlink.FAMILY_V6
	}
	entries, err := kernel.NeighList(device, family)
	if err != nil {
		return nil, err
	}
	known := make(map[netip.Addr]string)
	for i := range entries {
		if address, ok := netip.AddrFromSlice(entries[i].IP); ok && entries[i].State&heardOf != 0 {
			known[address.Unmap()] = entries[i].HardwareAddr.String()
		}
	}
	return known, nil
}

// netlinkTimeout bounds each exchange with the kernel.
const netlinkTimeout = time.Second
