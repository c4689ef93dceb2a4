package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

// CheckAddress makes sure that an established connection to the guest's SSH server at address
// (host:port) leads to this machine. Host key and password can come from the image, and
// then do not distinguish its machines. With the connection established, this host has
// heard from the other end; if that is another machine, the kernel knows it by its MAC
// address. macs are those of the machine; jobDir is the directory of its job.
func CheckAddress(ctx context.Context, dom *virt.Domain, jobDir, address string, macs []string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("machine %s: its record has no SSH address: %w", dom.Name(), err)
	}
	if at.Addr().IsLoopback() {
		// The passt of the machine has held the port since before the machine ran. Without
		// passt, the machine's own QEMU holds it.
		if err := passt.Check(jobDir); err != nil {
			return fmt.Errorf("%w: %w", ErrContested, err)
		}
		return nil
	}
	return checkNeighbour(ctx, dom, at.Addr(), macs)
}

// StalledIn returns [Network.Stalled] for a machine that another process has started; nil if
// that is not known. jobDir is the directory of its job.
func StalledIn(jobDir string) func() bool { return passt.StalledIn(jobDir) }

// CheckForwarder makes sure that the process on this host still runs that forwards
// connections to address (host:port) to the guest, if there is one.
func CheckForwarder(jobDir, address string) error {
	if at, err := netip.ParseAddrPort(address); err != nil || !at.Addr().IsLoopback() {
		return nil
	}
	return passt.Check(jobDir)
}

// checkNeighbour makes sure that the address belongs to a NIC of the machine.
func checkNeighbour(ctx context.Context, dom *virt.Domain, address netip.Addr, macs []string) error {
	if len(macs) == 0 { // started by an older version of this program
		nics, err := dhcp.NICs(ctx, dom)
		if err != nil {
			return err
		}
		for _, nic := range nics {
			macs = append(macs, nic.MAC)
		}
	}
	mac, onLink, err := dhcp.Neighbour(address)
	switch {
	case err != nil:
		return fmt.Errorf("%w: find out which machine has %s: %w", ErrContested, address, err)
	case !onLink:
		return nil // behind a router: only the router knows
	case !slices.Contains(macs, mac):
		return fmt.Errorf("%w: %s belongs to machine %s (%s), but %s answers there", ErrContested, address, dom.Name(), strings.Join(macs, ", "), mac)
	}
	return nil
}
