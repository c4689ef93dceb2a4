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

// A Machine is what a snapshot is made of, or looked for.
type Machine struct {
	Name string
	// Dir is where the snapshots of the image lie.
	Dir string
	// Domain is what the machine would boot as, before it is given to one job.
	Domain *libvirtxml.Domain
	// Disks of the image.
	Disks []disk.Disk
	// DiskSize is the least size of the first disk, in bytes.
	DiskSize int64
	SSHPort  int
	// User that the guest is given at boot; empty if its image has one.
	User string
	// Network is what the guest knows of the network of the host.
	Network Network
	// Cache says that the machine has a cache.
	Cache bool
}

// A Network is what a guest keeps in its memory of the network of the host.
type Network struct {
	// User says that the guest is alone in its network, and can go on with its address.
	User bool
	// Passt says that the network is passt's, which gives it other addresses than QEMU's
	// own does.
	Passt bool
	// Addresses of the host, and the contents of its resolver's files.
	Addresses, Resolver []string
}

// obstacle says why no snapshot could be made of the machine; nil if one could.
func (m *Machine) obstacle(h *virt.Host) error {
	d := m.Domain
	switch {
	case m.Dir == "":
		return none("none is wanted")
	case !m.Network.User:
		// The guest would go on with the address of another.
		return none("only a guest on the network \"user\" can go on under the address that it had")
	case m.Cache:
		return none("a cache belongs to one job")
	case h.System() && os.Geteuid() != 0:
		return none("only root may read what the system's libvirt saves")
	case len(d.Devices.TPMs) > 0:
		return none("the state of a TPM is not part of it")
	case len(d.Devices.Hostdevs) > 0 || len(d.Devices.Filesystems) > 0:
		return none("it has devices of the host")
	}
	return nil
}

// key identifies the machine on this host as it is now. Everything that a guest has in
// its memory of host and settings is part of it.
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
		User                string
		Passt               bool
		Libvirt, QEMU       uint32
		Kernel, Processor   string
		Addresses, Resolver []string
	}{
		doc, m.Disks, m.DiskSize, m.SSHPort, m.User,
		m.Network.Passt, h.Version(), qemu,
		unix.ByteSliceToString(kernel.Release[:]), processor(),
		m.Network.Addresses, m.Network.Resolver,
	})
	return hex.EncodeToString(hash.Sum(nil)), err
}

// Find opens the snapshot of the machine. The error is an [ErrNone] if there is none;
// possible says whether the machine is of a kind that can be saved.
func Find(h *virt.Host, m *Machine) (_ *Snapshot, possible bool, err error) {
	if err := m.obstacle(h); err != nil {
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

// processor is what this host's processor can do: a guest that has looked takes
// it for granted.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	return cpuFlags(string(text))
}

// cpuFlags are the lines that say what the first processor is and can do.
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
