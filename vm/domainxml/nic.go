package domainxml

import (
	"strings"

	"libvirt.org/go/libvirtxml"
)

// nicModels are the network cards that QEMU emulates. libvirt hands any other
// text to QEMU as the name of a device.
var nicModels = []string{
	"virtio", "virtio-transitional", "virtio-non-transitional", "e1000", "e1000e", "igb", "rtl8139", "ne2k_pci",
	"pcnet", "vmxnet3", "i82551", "i82557b", "i82559er", "usb-net", "spapr-vlan",
}

// nic keeps the guest's side of a network card. The host's side (source, MAC
// address, MTU of the tap device, filters, scripts) is the caller's: an MTU alone
// would already be felt by every guest on the bridge.
func (r *rebuilder) nic(element string, in *libvirtxml.DomainInterface) (*libvirtxml.DomainInterface, error) {
	out := &libvirtxml.DomainInterface{
		Source: unplugged(), Boot: bootOrder(in.Boot), ACPI: acpiIndex(in.ACPI), Alias: r.alias(in.Alias),
	}
	if in.Model != nil {
		model := oneOf(in.Model.Type, nicModels...)
		if model == "" {
			return nil, refuse(element+"/model", "%q is none of %s", text(in.Model.Type), strings.Join(nicModels, ", "))
		}
		out.Model = &libvirtxml.DomainInterfaceModel{Type: model}
	}
	if rom := in.ROM; rom != nil && (onOff(rom.Bar) != "" || yesNo(rom.Enabled) != "") {
		out.ROM = &libvirtxml.DomainROM{Bar: onOff(rom.Bar), Enabled: yesNo(rom.Enabled)}
	}
	if r.trusted {
		out.MTU, out.Driver = in.MTU, in.Driver
	}
	var err error
	out.Address, err = address(element, in.Address)
	return out, err
}

// unplugged is the host's side of a network card until the caller chooses one:
// connected to nothing, so that to forget it harms nobody.
func unplugged() *libvirtxml.DomainInterfaceSource {
	return &libvirtxml.DomainInterfaceSource{Null: &libvirtxml.DomainInterfaceSourceNull{}}
}
