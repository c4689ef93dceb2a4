package domainxml

import (
	"bytes"
	"encoding/xml"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// maxSize is the maximum size of a document in bytes. Real domains have less than 20 KiB.
const maxSize = 1 << 20

// A Disk is a layer of the image. The disks of the domain must be layers.
type Disk struct {
	// Name is the base name of the disk in the domain XML.
	Name string
	// Format is "qcow2" or "raw", from the header of the file. The format in the domain XML
	// is ignored.
	Format string
}

// Options define what a domain may use.
type Options struct {
	// Disks are the layers of the image. Those that the domain does not name (backing files)
	// are not attached.
	Disks []Disk

	// Trusted: the administrator trusts the author of the document. In addition to what every
	// image may have, it keeps without checks:
	//
	//   - qemu:commandline, qemu:capabilities, qemu:override, qemu:deprecation and
	//     the device aliases that they refer to;
	//   - the emulator;
	//   - all of <os>: loader and nvram by path, direct kernel boot, ACPI
	//     tables, smbios;
	//   - all of <cpu> and <features>;
	//   - sysinfo with fw_cfg, memoryBacking, maxMemory and memory devices, vcpu
	//     placement and pinning, iothreads, cputune, numatune, memtune, blkiotune,
	//     launchSecurity;
	//   - hostdev, filesystem, shmem, vsock, and the MTU and driver tuning of
	//     network cards.
	//
	// Disks must still be layers, network cards are not connected, serial ports are ptys, and
	// graphics, seclabel, resource, name, UUID and metadata are dropped: the caller sets
	// them. The limits of the size and depth of the document also apply.
	Trusted bool
	// AnyDisk accepts every file of a disk as a raw layer, to check a document before the
	// names of the layers are known. The result cannot be started.
	AnyDisk bool
}

// A Result is a harmless domain.
type Result struct {
	// Domain has OS.Type, Memory, VCPU and Devices, and no name, UUID or metadata. Its disks
	// are in the order of the document. Source.File.File is the base name of the layer, and
	// empty for an empty drive. Network cards have no MAC address and are not connected
	// (type null); serial ports and consoles are ptys. Type is "kvm" or "qemu" as in the
	// image.
	Domain *libvirtxml.Domain
	// Dropped lists what was dropped from the image's domain, as paths below <domain>:
	// "devices/hostdev", "devices/disk/driver/@io". It omits what is specific to a machine
	// and never taken from an image: name, UUID, title, description, metadata, MAC
	// addresses, the back ends of network cards and consoles, emulator, aliases, disk
	// drivers and backing stores, security labels.
	Dropped []string
}

// Rebuild builds a domain from the domain XML of an image. The package comment lists what is
// kept. All errors are [*RefusedError].
//
// Rebuild is idempotent: rebuilding the marshalled result with the same options returns the
// same result.
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

// A rebuilder holds the state of a rebuild.
type rebuilder struct {
	formats  map[string]string // of the layers, by base name
	used     map[string]bool   // layers that a disk has claimed
	trusted  bool
	anyDisk  bool
	replaced []string // values that were replaced, for Result.Dropped
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

// replace records that a value was replaced.
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
	// Everything in the new document counts as kept.
	s, err := screen(buf.Bytes(), true)
	if err != nil {
		return nil, err
	}
	return s.inventory, nil
}
