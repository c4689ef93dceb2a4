package domainxml

import (
	"libvirt.org/go/libvirtxml"
)

// Limits of addresses. libvirt adds the controllers that an address implies: for a disk on
// controller 4294967295, it would add four billion.
const (
	maxControllerIndex = 31
	maxPCIBus          = 255
	maxBootOrder       = 255
)

// usbPort is a path through hubs: 1, or 1.4.2.
var usbPort = newPattern(`^[1-9][0-9]?(\.[1-9][0-9]?){0,3}$`)

// address keeps the address of a device. An invalid one is refused, not dropped: the device
// would get another address, and so another name in the guest.
func address(element string, in *libvirtxml.DomainAddress) (*libvirtxml.DomainAddress, error) {
	element += "/address"
	switch {
	case in == nil:
		return nil, nil
	case in.PCI != nil:
		return pciAddress(element, in.PCI)
	case in.Drive != nil:
		d := in.Drive
		return &libvirtxml.DomainAddress{Drive: ptr(*d)}, inRange(element,
			bound{"controller", d.Controller, maxControllerIndex}, bound{"bus", d.Bus, 7},
			bound{"target", d.Target, 255}, bound{"unit", d.Unit, 16383})
	case in.VirtioSerial != nil:
		v := in.VirtioSerial
		return &libvirtxml.DomainAddress{VirtioSerial: ptr(*v)}, inRange(element,
			bound{"controller", v.Controller, maxControllerIndex}, bound{"bus", v.Bus, 0}, bound{"port", v.Port, 511})
	case in.USB != nil:
		if in.USB.Port != "" && matching(usbPort, in.USB.Port) == "" {
			return nil, refuse(element+"/@port", "%q is not a USB port", text(in.USB.Port))
		}
		u := &libvirtxml.DomainAddressUSB{Bus: in.USB.Bus, Port: in.USB.Port}
		return &libvirtxml.DomainAddress{USB: u}, inRange(element, bound{"bus", u.Bus, maxControllerIndex})
	case in.CCW != nil:
		c := in.CCW
		return &libvirtxml.DomainAddress{CCW: ptr(*c)}, inRange(element,
			bound{"cssid", c.CSSID, 0xfe}, bound{"ssid", c.SSID, 3}, bound{"devno", c.DevNo, 0xffff})
	case in.ISA != nil:
		i := in.ISA
		return &libvirtxml.DomainAddress{ISA: ptr(*i)}, inRange(element,
			bound{"iobase", i.IOBase, 0xffff}, bound{"irq", i.IRQ, 15})
	case in.SpaprVIO != nil:
		if reg := in.SpaprVIO.Reg; reg != nil && *reg > 0xffffffff {
			return nil, refuse(element+"/@reg", "it is above 0xffffffff")
		}
		return &libvirtxml.DomainAddress{SpaprVIO: ptr(*in.SpaprVIO)}, nil
	case in.VirtioMMIO != nil:
		return &libvirtxml.DomainAddress{VirtioMMIO: &libvirtxml.DomainAddressVirtioMMIO{}}, nil
	default:
		return nil, nil
	}
}

func pciAddress(element string, p *libvirtxml.DomainAddressPCI) (*libvirtxml.DomainAddress, error) {
	out := &libvirtxml.DomainAddressPCI{
		Domain: p.Domain, Bus: p.Bus, Slot: p.Slot, Function: p.Function,
		MultiFunction: onOff(p.MultiFunction),
	}
	bounds := []bound{
		{"domain", p.Domain, 0xffff}, {"bus", p.Bus, maxPCIBus}, {"slot", p.Slot, 0x1f}, {"function", p.Function, 7},
	}
	if z := p.ZPCI; z != nil {
		out.ZPCI = &libvirtxml.DomainAddressZPCI{UID: z.UID, FID: z.FID}
		bounds = append(bounds, bound{"zpci uid", z.UID, 0xffff}, bound{"zpci fid", z.FID, 0xffffffff})
	}
	return &libvirtxml.DomainAddress{PCI: out}, inRange(element, bounds...)
}

type bound struct {
	name  string
	value *uint
	limit uint
}

func inRange(element string, bounds ...bound) error {
	for _, b := range bounds {
		if b.value != nil && *b.value > b.limit {
			return refuse(element, "%s %d is above %d", b.name, *b.value, b.limit)
		}
	}
	return nil
}

// bootOrder keeps the position of a device in the boot order.
func bootOrder(in *libvirtxml.DomainDeviceBoot) *libvirtxml.DomainDeviceBoot {
	if in == nil || in.Order < 1 || in.Order > maxBootOrder {
		return nil
	}
	return &libvirtxml.DomainDeviceBoot{Order: in.Order}
}

// acpiIndex is kept: guests name network cards after it (eno1).
func acpiIndex(in *libvirtxml.DomainDeviceACPI) *libvirtxml.DomainDeviceACPI {
	if in == nil || in.Index < 1 || in.Index > 16383 { // QEMU's ACPI_PCIHP limit
		return nil
	}
	return &libvirtxml.DomainDeviceACPI{Index: in.Index}
}

// alias is kept in trusted documents: qemu:override refers to it.
func (r *rebuilder) alias(in *libvirtxml.DomainAlias) *libvirtxml.DomainAlias {
	if in == nil || !r.trusted {
		return nil
	}
	return &libvirtxml.DomainAlias{Name: in.Name}
}
