package define

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// RenameDisks replaces the names of an image's disks in its domain XML. The renamed disks are
// qcow2.
func RenameDisks(doc []byte, names map[string]string) ([]byte, error) {
	d := &libvirtxml.Domain{}
	if err := d.Unmarshal(string(doc)); err != nil {
		return nil, fmt.Errorf("read the domain XML: %w", err)
	}
	if d.Devices == nil {
		return doc, nil
	}
	for i := range d.Devices.Disks {
		device := &d.Devices.Disks[i]
		if device.Source == nil || device.Source.File == nil {
			continue
		}
		name, ok := names[device.Source.File.File]
		if !ok {
			continue
		}
		device.Source.File.File, device.BackingStore = name, nil
		if device.Driver != nil {
			device.Driver.Type = "qcow2"
		}
	}
	text, err := d.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write the domain XML: %w", err)
	}
	return []byte(text), nil
}
