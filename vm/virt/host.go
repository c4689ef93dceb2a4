package virt

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

// A Host is a connection to the libvirt daemon that runs the machines.
type Host struct {
	conn       *libvirt.Connect
	uri        string
	keepEvents *sync.Once
	calls      calls
}

// defaultURI is that of virsh: the system daemon for root, the user's own daemon
// otherwise.
func defaultURI() string {
	if os.Geteuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

// Open connects to libvirt. If uri is empty, root connects to qemu:///system and other users
// to qemu:///session, as with virsh. The libvirt library cannot be interrupted: Open, like
// all methods that call the daemon, returns when ctx ends, and the call ends by itself.
func Open(ctx context.Context, uri string) (*Host, error) {
	if uri == "" {
		uri = defaultURI()
	}
	conn, err := await(ctx, nil, "connect to libvirt at "+uri, func() (*libvirt.Connect, error) {
		_ = startLoop() // without it there are no events, and Domain.Events says so
		return libvirt.NewConnect(uri)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w: is libvirtd running, and may this user use it? (try: virsh -c %s list)", errdefs.ErrUnreachable, err, uri)
	}
	return &Host{conn: conn, uri: uri, keepEvents: &sync.Once{}, calls: calls{release: func() error { return discard(conn) }}}, nil
}

// Close closes the connection, after the calls that were given up. Machines continue to run.
func (h *Host) Close() error { return h.calls.close() }

// URI of the connection.
func (h *Host) URI() string { return h.uri }

// System reports whether the machines run under the system daemon, and so possibly as
// another user than this process.
func (h *Host) System() bool { return strings.HasSuffix(strings.SplitN(h.uri, "?", 2)[0], "/system") }

// Libvirt returns the connection of the library, for calls that this package does not wrap.
func (h *Host) Libvirt() *libvirt.Connect { return h.conn }

// Version of the daemon in libvirt's format: 9.1.0 is 9001000. It is 0 if it is not known.
func (h *Host) Version() uint32 {
	v, err := h.conn.GetLibVersion()
	if err != nil {
		return 0
	}
	return v
}

// QEMUVersion is the version of the hypervisor in libvirt's format.
func (h *Host) QEMUVersion() (uint32, error) {
	v, err := h.conn.GetVersion()
	if err != nil {
		return 0, fmt.Errorf("ask for the version of QEMU: %w", clean(err))
	}
	return v, nil
}

// HostSize is the size of a host.
type HostSize struct {
	CPUs   uint
	Memory uint64 // bytes
}

// Size of the host, as libvirt counts it.
func (h *Host) Size(ctx context.Context) (HostSize, error) {
	info, err := await(ctx, &h.calls, "ask for the size of the host", func() (*libvirt.NodeInfo, error) { return h.conn.GetNodeInfo() })
	if err != nil {
		return HostSize{}, err
	}
	return HostSize{CPUs: info.Cpus, Memory: info.Memory << 10}, nil
}

// Memories returns the memory, in bytes, of all running domains by their names, also of those
// that are not a job's.
func (h *Host) Memories(ctx context.Context) (map[string]uint64, error) {
	return await(ctx, &h.calls, "add up the memory of the domains", func() (map[string]uint64, error) {
		domains, err := h.conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return nil, err
		}
		memories := make(map[string]uint64, len(domains))
		for i := range domains {
			name, nameErr := domains[i].GetName()
			info, err := domains[i].GetInfo()
			domains[i].Free()
			if nameErr == nil && err == nil { // otherwise the domain has just ended
				memories[name] = info.MaxMem << 10
			}
		}
		return memories, nil
	})
}

// Architectures returns the architectures of the machines that the host runs, in libvirt's
// words; nil if the driver is not QEMU, and so does not report them.
func (h *Host) Architectures(ctx context.Context) ([]string, error) {
	driver, err := await(ctx, &h.calls, "ask libvirt for its driver", h.conn.GetType)
	if err != nil || driver != "QEMU" {
		return nil, err
	}
	text, err := await(ctx, &h.calls, "ask libvirt for its capabilities", h.conn.GetCapabilities)
	if err != nil {
		return nil, err
	}
	return architectures(text)
}

// architectures reads them from the capabilities of libvirt.
func architectures(capabilities string) ([]string, error) {
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(capabilities); err != nil {
		return nil, fmt.Errorf("read the capabilities of libvirt: %w", err)
	}
	var have []string
	for _, guest := range caps.Guests {
		if guest.OSType == "hvm" && !slices.Contains(have, guest.Arch.Name) {
			have = append(have, guest.Arch.Name)
		}
	}
	return have, nil
}

// HasUEFI reports whether libvirt finds UEFI firmware for machines of an architecture, by
// libvirt's name.
func (h *Host) HasUEFI(ctx context.Context, arch string) (bool, error) {
	text, err := await(ctx, &h.calls, "ask libvirt for the firmware of "+arch, func() (string, error) {
		return h.conn.GetDomainCapabilities("", arch, "", "", 0)
	})
	if err != nil {
		return false, err
	}
	var caps libvirtxml.DomainCaps
	if err := caps.Unmarshal(text); err != nil {
		return false, fmt.Errorf("read the capabilities of libvirt: %w", err)
	}
	if caps.OS == nil {
		return false, nil
	}
	return slices.ContainsFunc(caps.OS.Enums, func(e libvirtxml.DomainCapsEnum) bool {
		return e.Name == "firmware" && slices.Contains(e.Values, "efi")
	}), nil
}

// LibraryVersion is the version of the libvirt library of this program, in libvirt's format; 0
// if it is not known.
func LibraryVersion() uint32 {
	v, err := libvirt.GetVersion()
	if err != nil {
		return 0
	}
	return v
}

// FormatVersion writes a version in libvirt's format for people: 9001000 is 9.1.0.
func FormatVersion(v uint32) string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000)
}
