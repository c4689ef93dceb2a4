package domainxml

import (
	"libvirt.org/go/libvirtxml"
)

// controllerModels are the models of each type of controller that QEMU emulates.
var controllerModels = map[string][]string{
	"pci": {
		"pci-root", "pcie-root", "pci-bridge", "dmi-to-pci-bridge", "pcie-to-pci-bridge", "pcie-root-port",
		"pcie-switch-upstream-port", "pcie-switch-downstream-port", "pci-expander-bus", "pcie-expander-bus",
	},
	"usb": {
		"piix3-uhci", "piix4-uhci", "ehci", "ich9-ehci1", "ich9-uhci1", "ich9-uhci2", "ich9-uhci3",
		"vt82c686b-uhci", "pci-ohci", "nec-xhci", "qemu-xhci", "none",
	},
	"scsi": {
		"auto", "buslogic", "lsilogic", "lsisas1068", "vmpvscsi", "ibmvscsi", "virtio-scsi", "lsisas1078",
		"am53c974", "dc390", "virtio-transitional", "virtio-non-transitional",
	},
	"sata":          {},
	"ide":           {"piix3", "piix4", "ich6"},
	"fdc":           {},
	"virtio-serial": {"virtio", "virtio-transitional", "virtio-non-transitional"},
	"nvme":          {},
}

// pciModels are the devices behind the models of PCI controllers.
var pciModels = []string{
	"pcie-root-port", "ioh3420", "pcie-pci-bridge", "i82801b11-bridge", "pci-bridge", "x3130-upstream",
	"xio3130-downstream", "pxb", "pxb-pcie", "spapr-pci-host-bridge",
}

var nvmeSerial = newPattern(`^[A-Za-z0-9_-]{1,20}$`)

// controller keeps the topology of the buses exactly. A controller that cannot be kept is
// refused, since the addresses of its devices would change. The result is nil for
// controllers of devices that are dropped.
func (r *rebuilder) controller(element string, in *libvirtxml.DomainController) (*libvirtxml.DomainController, error) {
	switch in.Type {
	case "ccid", "xenbus", "isa":
		return nil, nil
	}
	models, ok := controllerModels[in.Type]
	if !ok {
		return nil, refuse(element+"/@type", "%q is no controller that is known here", text(in.Type))
	}
	out := &libvirtxml.DomainController{
		Type: in.Type, Model: oneOf(in.Model, models...), ACPI: acpiIndex(in.ACPI), Alias: r.alias(in.Alias),
	}
	if out.Model == "" && in.Model != "" {
		return nil, refuse(element+"/@model", "%q is no model of a %s controller that is known here", text(in.Model), in.Type)
	}
	limit := uint(maxControllerIndex)
	if in.Type == "pci" {
		limit = maxPCIBus
	}
	if out.Index = upTo(in.Index, limit); out.Index == nil && in.Index != nil {
		return nil, refuse(element+"/@index", "%d is above %d", *in.Index, limit)
	}
	var err error
	if out.Address, err = address(element, in.Address); err != nil {
		return nil, err
	}
	switch {
	case in.PCI != nil:
		out.PCI, err = pciController(element, in.PCI)
	case in.USB != nil:
		out.USB = usbController(in.USB)
	case in.VirtIOSerial != nil:
		out.VirtIOSerial = &libvirtxml.DomainControllerVirtIOSerial{
			Ports: upTo(in.VirtIOSerial.Ports, 511), Vectors: upTo(in.VirtIOSerial.Vectors, 1024),
		}
	case in.NVME != nil:
		out.NVME = &libvirtxml.DomainControllerNVME{Serial: matching(nvmeSerial, in.NVME.Serial)}
	}
	return out, err
}

func pciController(element string, in *libvirtxml.DomainControllerPCI) (*libvirtxml.DomainControllerPCI, error) {
	out := &libvirtxml.DomainControllerPCI{}
	if in.Model != nil {
		name := oneOf(in.Model.Name, pciModels...)
		if name == "" {
			return nil, refuse(element+"/model", "%q is no PCI controller that is known here", text(in.Model.Name))
		}
		out.Model = &libvirtxml.DomainControllerPCIModel{Name: name}
	}
	if t := in.Target; t != nil {
		err := inRange(element+"/target", bound{"chassisNr", t.ChassisNr, 255}, bound{"chassis", t.Chassis, 255},
			bound{"port", t.Port, 255}, bound{"busNr", t.BusNr, 254}, bound{"index", t.Index, 30})
		if err != nil {
			return nil, err
		}
		out.Target = &libvirtxml.DomainControllerPCITarget{
			ChassisNr: t.ChassisNr, Chassis: t.Chassis, Port: t.Port, BusNr: t.BusNr, Index: t.Index,
			Hotplug: onOff(t.Hotplug),
		}
	}
	if h := in.Hole64; h != nil { // guest-physical addresses, not memory of the host
		kib, err := kibibytes(element+"/pcihole64", uint(h.Size), h.Unit)
		if h.Size == 0 {
			kib, err = 0, nil
		}
		if err != nil {
			return nil, err
		}
		out.Hole64 = &libvirtxml.DomainControllerPCIHole64{Size: uint64(kib), Unit: "KiB"}
	}
	return out, nil
}

func usbController(in *libvirtxml.DomainControllerUSB) *libvirtxml.DomainControllerUSB {
	out := &libvirtxml.DomainControllerUSB{Port: upTo(in.Port, 15)}
	if m := in.Master; m != nil && m.StartPort <= 15 {
		out.Master = &libvirtxml.DomainControllerUSBMaster{StartPort: m.StartPort}
	}
	return out
}
