package vm

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/network/passt"
)

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
	if err := passt.Check(jobDir); err != nil {
		return fmt.Errorf("%w: %w", network.ErrContested, err)
	}
	return nil
}

// checkNeighbour makes sure that the address is that of one of the machine's own NICs.
func (g *Guest) checkNeighbour(ctx context.Context, address netip.Addr) error {
	own := strings.Fields(g.record.MAC)
	if len(own) == 0 { // made by an older version of this program
		nics, err := dhcp.NICs(ctx, g.dom)
		if err != nil {
			return err
		}
		for _, nic := range nics {
			own = append(own, nic.MAC)
		}
	}
	mac, onLink, err := dhcp.Neighbour(address)
	switch {
	case err != nil:
		return fmt.Errorf("%w: find out which machine has %s: %w", network.ErrContested, address, err)
	case !onLink:
		return nil // behind a router, which alone knows
	case !slices.Contains(own, mac):
		return fmt.Errorf("%w: %s belongs to machine %s (%s), but %s answers there", network.ErrContested, address, g.name, strings.Join(own, ", "), mac)
	}
	return nil
}
