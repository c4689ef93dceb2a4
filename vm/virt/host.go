package virt

import (
	"context"
	"fmt"
	"os"
	"strings"

	"libvirt.org/go/libvirt"
)

// A Host is a connection to the libvirt daemon that runs the machines.
type Host struct {
	conn *libvirt.Connect
	uri  string
}

// DefaultURI is where virsh would connect to: the system daemon as root, the
// user's own otherwise.
func DefaultURI() string {
	if os.Geteuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

// Open connects to libvirt; an empty uri means [DefaultURI]. The libvirt
// library cannot be interrupted, so that Open, like everything that asks the
// daemon, returns when ctx ends and leaves the call to end by itself.
func Open(ctx context.Context, uri string) (*Host, error) {
	if uri == "" {
		uri = DefaultURI()
	}
	conn, err := Await(ctx, "connect to libvirt at "+uri, func() (*libvirt.Connect, error) {
		return libvirt.NewConnect(uri)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w: is libvirtd running, and may this user use it? (try: virsh -c %s list)", ErrUnreachable, err, uri)
	}
	return &Host{conn: conn, uri: uri}, nil
}

// Close ends the connection. Machines go on.
func (h *Host) Close() error {
	_, err := h.conn.Close()
	return err
}

// URI is what libvirt was reached by.
func (h *Host) URI() string { return h.uri }

// System says whether the machines run under the system daemon, and so with
// other rights than this process.
func (h *Host) System() bool { return strings.HasSuffix(strings.SplitN(h.uri, "?", 2)[0], "/system") }

// Libvirt is the library's own connection, for what this package does not wrap.
func (h *Host) Libvirt() *libvirt.Connect { return h.conn }

// Version of the daemon, as libvirt writes it: 9.1.0 is 9001000. 0 if it does
// not say.
func (h *Host) Version() uint32 {
	v, err := h.conn.GetLibVersion()
	if err != nil {
		return 0
	}
	return v
}

// QEMUVersion is the version of the hypervisor, as libvirt writes it.
func (h *Host) QEMUVersion() (uint32, error) {
	v, err := h.conn.GetVersion()
	if err != nil {
		return 0, fmt.Errorf("ask for the version of QEMU: %w", clean(err))
	}
	return v, nil
}

// HostSize is what a host has to give.
type HostSize struct {
	CPUs   uint
	Memory uint64 // bytes
}

// Size of the host, as libvirt counts it.
func (h *Host) Size(ctx context.Context) (HostSize, error) {
	info, err := Await(ctx, "ask for the size of the host", func() (*libvirt.NodeInfo, error) { return h.conn.GetNodeInfo() })
	if err != nil {
		return HostSize{}, err
	}
	return HostSize{CPUs: info.Cpus, Memory: info.Memory << 10}, nil
}

// MemoryInUse is the memory, in bytes, of all domains that run, other people's
// included.
func (h *Host) MemoryInUse(ctx context.Context) (uint64, error) {
	return Await(ctx, "add up the memory of the domains", func() (uint64, error) {
		domains, err := h.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return 0, err
		}
		var sum uint64
		for i := range domains {
			info, err := domains[i].GetInfo()
			domains[i].Free()
			if err == nil { // else it has just ended
				sum += info.MaxMem << 10
			}
		}
		return sum, nil
	})
}
