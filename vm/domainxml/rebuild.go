package domainxml

import (
	"bytes"
	"encoding/xml"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// MaxSize is the size in bytes up to which a document is looked at. Real domains
// have less than 20 KiB.
const MaxSize = 1 << 20

// A Disk is a layer of the image: the only thing on which a disk of the domain
// can lie.
type Disk struct {
	// Name is the base name by which the domain XML knows the disk.
	Name string
	// Format is "qcow2" or "raw". It comes from whoever read the file's header;
	// what the domain XML says about it is ignored.
	Format string
}

// Options say what a domain may use.
type Options struct {
	// Disks are the layers of the image. Those that the domain does not mention
	// (the bases of a backing chain) are not attached.
	Disks []Disk

	// Trusted is the administrator's word that the author of the document may do
	// what the administrator may. It keeps, unchecked, in addition to what every
	// image may have:
	//
	//   - qemu:commandline, qemu:capabilities, qemu:override, qemu:deprecation and
	//     the device aliases that they refer to;
	//   - the emulator;
	//   - the whole of <os>: loader and nvram by path, direct kernel boot, ACPI
	//     tables, smbios;
	//   - the whole of <cpu> and <features>;
	//   - sysinfo with fw_cfg, memoryBacking, maxMemory and memory devices, vcpu
	//     placement and pinning, iothreads, cputune, numatune, memtune, blkiotune,
	//     launchSecurity;
	//   - hostdev, filesystem, shmem, vsock, and the MTU and driver tuning of
	//     network cards.
	//
	// Even then disks are layers, network cards have no host side, serial ports
	// are ptys, and graphics, seclabel, resource, name, UUID and metadata are
	// gone: they belong to whoever starts the machine. The bounds on size and
	// depth of the document hold, too.
	Trusted bool
	// AnyDisk takes every file that a disk names for a layer, of the format raw: for a
	// document that is judged before the layers have names. The result is no machine.
	AnyDisk bool
}

// A Result is a domain that harms nobody.
type Result struct {
	// Domain has OS.Type, Memory, VCPU and Devices, and no name, UUID or metadata.
	// Its disks are in the order of the
	// document with the layer's base name as Source.File.File, which is empty for a
	// drive without medium. Its network cards have no MAC address and
	// are connected to nothing (type null); serial ports and consoles are ptys.
	// Type is "kvm" or "qemu" as the image had it.
	Domain *libvirtxml.Domain
	// Dropped lists what the image asked for and does not get, as paths below
	// <domain>: "devices/hostdev", "devices/disk/driver/@io". What belongs to
	// every machine alone, and is therefore never taken from an image, is not
	// listed: name, UUID, title, description, metadata, MAC addresses, the host
	// side of network cards and consoles, emulator, aliases, disk drivers and backing
	// stores, security labels.
	Dropped []string
}

// Rebuild makes a domain from the domain XML of an image; the package comment
// says what is kept. Every error is a [*RefusedError].
//
// Rebuild is idempotent: the result, marshalled and rebuilt with the same
// options, is the result.
func Rebuild(doc []byte, opts Options) (*Result, error) {
	r, err := newRebuilder(opts)
	if err != nil {
		return nil, err
	}
	screened, err := screen(doc, opts.Trusted)
	if err != nil {
		return nil, err
	}
	in, err := screened.decode()
	if err != nil {
		return nil, err
	}
	out, err := r.domain(in)
	if err != nil {
		return nil, err
	}
	kept, err := marshalledInventory(out)
	if err != nil {
		return nil, err
	}
	return &Result{Domain: out, Dropped: append(screened.inventory.missing(kept), r.replaced...)}, nil
}

// A rebuilder carries what the parts of a domain have in common while they are
// rebuilt.
type rebuilder struct {
	formats  map[string]string // of the layers, by base name
	used     map[string]bool   // layers that a disk has claimed
	trusted  bool
	anyDisk  bool
	replaced []string // values that became others: Result.Dropped cannot see them missing
}

func newRebuilder(opts Options) (*rebuilder, error) {
	r := &rebuilder{formats: map[string]string{}, used: map[string]bool{}, trusted: opts.Trusted, anyDisk: opts.AnyDisk}
	for _, d := range opts.Disks {
		if err := d.check(); err != nil {
			return nil, err
		}
		r.formats[d.Name] = d.Format
	}
	return r, nil
}

// replace notes that the image does not get the value it asked for, but another.
func (r *rebuilder) replace(path, was, is string) {
	r.replaced = append(r.replaced, fmt.Sprintf("%s (%s instead of %s)", path, is, was))
}

func (r *rebuilder) domain(in *libvirtxml.Domain) (*libvirtxml.Domain, error) {
	out := &libvirtxml.Domain{}
	for _, step := range []func(in, out *libvirtxml.Domain) error{
		r.domainType,
		r.system,
		r.memory,
		r.cpus,
		r.features,
		r.clock,
		r.lifecycle,
		r.devices,
	} {
		if err := step(in, out); err != nil {
			return nil, err
		}
	}
	if r.trusted {
		trust(in, out)
	}
	return out, nil
}

func marshalledInventory(d *libvirtxml.Domain) (*inventory, error) {
	var buf bytes.Buffer
	if err := xml.NewEncoder(&buf).Encode(d); err != nil {
		return nil, refuse("", "cannot be written again: %v", err)
	}
	// The document is ours: everything in it counts as kept.
	s, err := screen(buf.Bytes(), true)
	if err != nil {
		return nil, err
	}
	return s.inventory, nil
}
