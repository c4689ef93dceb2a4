package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/disk"
	"gitlab-sardine-executor/vm/virt"
)

// A Machine describes the machine for which a snapshot is made or used.
type Machine struct {
	Name string
	// Dir is the directory of the image's snapshots.
	Dir string
	// Domain with which the machine would boot, without what is specific to the job.
	Domain *libvirtxml.Domain
	// Disks of the image.
	Disks []disk.Disk
	// DiskSize is the minimum size of the first disk, in bytes.
	DiskSize int64
	SSHPort  int
	// User that the guest is given at boot; empty if its image has one.
	User string
	// Network of the host, as far as the guest knows it.
	Network Network
	// Tools is the path of its disk with programs of this host, which names their version;
	// empty for none.
	Tools string
	// Cache: the machine has a cache.
	Cache bool
}

// A Network describes what a guest has in its memory about the network of the host.
type Network struct {
	// User: the guest has a private network, and so can keep its address.
	User bool
	// Passt: the guest has the addresses of passt, which differ from those of QEMU's own
	// user network.
	Passt bool
	// Addresses of the host, and the contents of its resolver configuration.
	Addresses, Resolver []string
}

// check makes sure that a snapshot can be made of the machine.
func (m *Machine) check(h *virt.Host) error {
	d := m.Domain
	switch {
	case m.Dir == "":
		return none("there is no directory for snapshots")
	case !m.Network.User:
		// Clones would have the same address.
		return none("it needs the network \"user\", in which a guest can keep its address")
	case m.Cache:
		return none("a cache belongs to one job")
	case h.System() && os.Geteuid() != 0:
		return none("only root can read what the system's libvirt saves")
	case len(d.Devices.TPMs) > 0:
		return none("it would lack the state of the TPM")
	case len(d.Devices.Hostdevs) > 0 || len(d.Devices.Filesystems) > 0:
		return none("the machine has devices of the host")
	}
	return nil
}

// key identifies the machine on this host in its current state. It contains everything about
// host and settings that a guest has in its memory.
func (m *Machine) key(h *virt.Host) (string, error) {
	doc, err := m.Domain.Marshal()
	if err != nil {
		return "", fmt.Errorf("write the domain of %s: %w", m.Name, err)
	}
	qemu, err := h.QEMUVersion()
	if err != nil {
		return "", err
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return "", fmt.Errorf("ask for the version of the kernel: %w", err)
	}
	hash := sha256.New()
	err = json.NewEncoder(hash).Encode(struct {
		Domain              string
		Disks               []disk.Disk
		DiskSize            int64
		SSHPort             int
		User, Tools         string
		Passt               bool
		Libvirt, QEMU       uint32
		Kernel, Processor   string
		Addresses, Resolver []string
	}{
		doc, m.Disks, m.DiskSize, m.SSHPort, m.User, m.Tools,
		m.Network.Passt, h.Version(), qemu,
		unix.ByteSliceToString(kernel.Release[:]), processor(),
		m.Network.Addresses, m.Network.Resolver,
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// Find opens the snapshot of the machine. The error is an [ErrNone] if there is none; possible
// reports whether the machine is of a kind that can be saved.
func Find(h *virt.Host, m *Machine) (_ *Snapshot, possible bool, err error) {
	if err := m.check(h); err != nil {
		return nil, false, err
	}
	key, err := m.key(h)
	if err != nil {
		return nil, false, err
	}
	s := of(m.Dir, key)
	if err := s.open(); err != nil {
		return nil, true, err
	}
	return s, true, nil
}

// processor returns the features of the CPU. A guest reads them at boot and relies on them
// later.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return cpuFlags(string(text))
}

// cpuFlags returns the identification and the features of the first CPU.
func cpuFlags(cpuinfo string) string {
	var said []string
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "model name", "microcode", "flags", "CPU implementer", "CPU part", "Features":
			said = append(said, strings.TrimSpace(value))
		}
	}
	return strings.Join(said, "\n")
}
