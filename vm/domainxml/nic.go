package domainxml

import (
	"strings"

	"libvirt.org/go/libvirtxml"
)

// nicModels are the network cards that QEMU emulates. libvirt passes any other text to QEMU as
// the name of a device.
var nicModels = []string{
	"virtio", "virtio-transitional", "virtio-non-transitional", "e1000", "e1000e", "igb", "rtl8139", "ne2k_pci",
	"pcnet", "vmxnet3", "i82551", "i82557b", "i82559er", "usb-net", "spapr-vlan",
}

// nic keeps the front end of a network card. The caller sets the back end (source, MAC address,
// MTU of the tap device, filters, scripts): even an MTU would affect all guests on the
// bridge.
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

// unplugged is the back end of a network card until the caller sets one: it is not connected,
// which is harmless if the caller forgets.
func unplugged() *libvirtxml.DomainInterfaceSource {
	return &libvirtxml.DomainInterfaceSource{Null: &libvirtxml.DomainInterfaceSourceNull{}}
}
