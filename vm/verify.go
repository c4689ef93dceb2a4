package vm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/network/dhcp"
	"gitlab-sardine-executor/vm/network/passt"
)

// logIn logs in over a connection to the guest's address, if this machine is at its other
// end: no other machine gets the credentials.
func (i *Instance) logIn(ctx context.Context, conn net.Conn, login guestssh.Login, pinned ssh.PublicKey) (*guestssh.Client, error) {
	if err := i.checkAddress(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	client, err := guestssh.Handshake(ctx, conn, login, pinned)
	if err != nil {
		return nil, err
	}
	// Again: another machine could have taken the address during the handshake. And this
	// machine must still be running: after its end another machine may have its address.
	err = i.checkAddress(ctx)
	if err == nil {
		err = i.alive(ctx)
	}
	if err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// checkAddress makes sure that the established connection leads to this machine. Host key and
// password can come from the image, and then do not distinguish its machines. With the
// connection established, this host has heard from the other end; if that is another
// machine, the kernel knows it by its MAC address.
func (i *Instance) checkAddress(ctx context.Context) error {
	at, err := netip.ParseAddrPort(i.record.Address)
	if err != nil {
		return fmt.Errorf("machine %s: its record has no SSH address: %w", i.name, err)
	}
	if at.Addr().IsLoopback() {
		return checkForwarder(i.jobDir)
	}
	return i.checkNeighbour(ctx, at.Addr())
}

// checkForwarder makes sure that the port on 127.0.0.1 is forwarded by the passt of the
// machine with that job directory, which has held the port since before the machine ran.
// Without passt, the machine's own QEMU forwards it.
func checkForwarder(jobDir string) error {
	if err := passt.Check(jobDir); err != nil {
		return fmt.Errorf("%w: %w", network.ErrContested, err)
	}
	return nil
}

// checkNeighbour makes sure that the address belongs to a NIC of the machine.
func (i *Instance) checkNeighbour(ctx context.Context, address netip.Addr) error {
	own := strings.Fields(i.record.MAC)
	if len(own) == 0 { // started by an older version of this program
		nics, err := dhcp.NICs(ctx, i.dom)
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
		return nil // behind a router: only the router knows
	case !slices.Contains(own, mac):
		return fmt.Errorf("%w: %s belongs to machine %s (%s), but %s answers there", network.ErrContested, address, i.name, strings.Join(own, ", "), mac)
	}
	return nil
}
