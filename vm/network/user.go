package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/internal/rollback"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/network/passt"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// userNetdev is the ID of the network back end in QEMU.
	userNetdev = "sardine0"
	// userNIC is the alias of the NIC that it belongs to.
	userNIC = "ua-sardine-nic"
	// portTries is how often another port is tried if one is taken.
	portTries = 5
)

// slirpWarning is the warning for a guest on QEMU's own user network.
const slirpWarning = "passt is not in use: QEMU's built-in user network lets the guest reach services " +
	"on this host's loopback address"

// userNetwork is a private network for one guest, without privileges: passt, or QEMU's built-in
// slirp if there is no passt, translates to sockets of ordinary processes. A port on
// 127.0.0.1 is forwarded to the guest's SSH server.
type userNetwork struct {
	port  int // on 127.0.0.1
	guest int
	passt *passt.Passt // nil: slirp
	tries int          // number of ports that were taken (slirp)
}

func newUserNetwork(ctx context.Context, h *virt.Host, o Options) (*userNetwork, []string, error) {
	slirp := func(why string) (*userNetwork, []string, error) {
		port, err := freePort()
		return &userNetwork{port: port, guest: o.SSHPort}, []string{slirpWarning + " (" + why + ")"}, err
	}
	program, err := exec.LookPath("passt")
	if err != nil {
		return slirp("install passt to prevent that")
	}
	owner, err := h.QEMUUser(ctx)
	if err != nil {
		return nil, nil, err
	}
	if int(owner.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		return slirp("only root can start passt as the user of the system's QEMU")
	}
	p := passt.New(h.QEMUUser, o.Machine, o.OverlayDir, o.JobDir)
	p.HostAccess = o.HostAccess
	for range portTries {
		port, perr := freePort()
		if perr != nil {
			return nil, nil, perr
		}
		err = p.Start(ctx, program, owner, port, o.SSHPort)
		switch {
		case err == nil:
			return &userNetwork{port: port, guest: o.SSHPort, passt: p}, p.Warnings(), nil
		case errors.Is(err, passt.ErrPortTaken):
			continue
		case errors.Is(err, passt.ErrNoRoute):
			return slirp("passt needs a default route, and this host has none")
		}
		return nil, nil, err
	}
	return nil, nil, err
}

// freePort returns a TCP port on 127.0.0.1 that was free a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port on 127.0.0.1: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Attach connects the first NIC to the network and removes the others.
//
// libvirt 9.0 supports neither passt nor forwarded ports. The back end is therefore added to
// the command line of QEMU, and the NIC is changed to use it instead of libvirt's. libvirt
// still assigns the slot of the NIC, so that a guest finds an interface that is named after
// the slot (enp1s0).
func (n *userNetwork) Attach(d *libvirtxml.Domain) error {
	if len(d.Devices.Interfaces) == 0 {
		return fmt.Errorf("%w: the domain has no network interface, and so cannot run jobs", errdefs.ErrInvalid)
	}
	d.Devices.Interfaces = d.Devices.Interfaces[:1]
	nic := &d.Devices.Interfaces[0]
	nic.Source = &libvirtxml.DomainInterfaceSource{User: &libvirtxml.DomainInterfaceSourceUser{}}
	nic.Alias = &libvirtxml.DomainAlias{Name: userNIC}

	if d.QEMUCommandline == nil {
		d.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
	}
	d.QEMUCommandline.Args = append(d.QEMUCommandline.Args,
		libvirtxml.DomainQEMUCommandlineArg{Value: "-netdev"},
		libvirtxml.DomainQEMUCommandlineArg{Value: n.netdev()})
	if d.QEMUOverride == nil {
		d.QEMUOverride = &libvirtxml.DomainQEMUOverride{}
	}
	d.QEMUOverride.Devices = append(d.QEMUOverride.Devices, libvirtxml.DomainQEMUOverrideDevice{
		Alias: nic.Alias.Name,
		Frontend: libvirtxml.DomainQEMUOverrideFrontend{Properties: []libvirtxml.DomainQEMUOverrideProperty{
			{Name: "netdev", Type: "string", Value: userNetdev},
		}},
	})
	return nil
}

// DetachUser undoes Attach in a domain that was saved from another machine.
func DetachUser(d *libvirtxml.Domain) {
	if d.QEMUCommandline != nil {
		args := d.QEMUCommandline.Args
		for i := 1; i < len(args); i++ {
			if args[i-1].Value == "-netdev" && strings.Contains(args[i].Value, ",id="+userNetdev+",") {
				d.QEMUCommandline.Args = slices.Delete(args, i-1, i+1)
				break
			}
		}
	}
	if d.QEMUOverride != nil {
		d.QEMUOverride.Devices = slices.DeleteFunc(d.QEMUOverride.Devices, func(o libvirtxml.DomainQEMUOverrideDevice) bool {
			return o.Alias == userNIC
		})
	}
}

func (n *userNetwork) netdev() string {
	if n.passt != nil {
		// QEMU requires two commas for each comma in a value.
		socket := strings.ReplaceAll(n.passt.Socket, ",", ",,")
		return "stream,id=" + userNetdev + ",server=off,addr.type=unix,addr.path=" + socket
	}
	return fmt.Sprintf("user,id=%s,hostfwd=tcp:127.0.0.1:%d-:%d", userNetdev, n.port, n.guest)
}

func (n *userNetwork) Address(context.Context, *virt.Domain) (string, error) {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)), nil
}

// Watch returns nil: the address does not change.
func (n *userNetwork) Watch(context.Context) <-chan struct{} { return nil }

// Retry chooses another port if slirp's is taken: QEMU binds it at its start.
func (n *userNetwork) Retry(_ context.Context, err error, d *libvirtxml.Domain) (string, bool) {
	if n.passt != nil || n.tries >= portTries || !strings.Contains(err.Error(), "host forwarding rule") {
		return "", false
	}
	n.tries++
	before := n.netdev()
	if n.port, err = freePort(); err != nil {
		return "", false
	}
	for i := range d.QEMUCommandline.Args {
		if arg := &d.QEMUCommandline.Args[i]; arg.Value == before {
			arg.Value = n.netdev()
		}
	}
	return "", true
}

func (n *userNetwork) Started(ctx context.Context) error {
	if n.passt == nil {
		return nil
	}
	return n.passt.Connected(ctx)
}

func (n *userNetwork) MACs() []string { return nil }

func (n *userNetwork) Absent(context.Context) error { return nil }

func (n *userNetwork) Stalled() bool { return n.passt != nil && n.passt.Stalled() }

func (n *userNetwork) Ended() error {
	if n.passt == nil || n.passt.Runs() {
		return nil
	}
	return errdefs.ErrNetworkEnded
}

func (n *userNetwork) Stop() error {
	if n.passt == nil {
		return nil
	}
	ctx, cancel := rollback.Context(context.Background())
	defer cancel()
	return n.passt.Stop(ctx)
}
