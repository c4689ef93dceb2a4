package export

import (
	"encoding/xml"
	"fmt"

	"gitlab-sardine-executor/internal/bootdisk"
	"gitlab-sardine-executor/internal/defaultmachine"
	"gitlab-sardine-executor/oci/packing"
)

// defaultDomain describes a default machine with the given disks. The format requires a
// domain, also for images made from disk files only.
func defaultDomain(arch string, files []packing.File) ([]byte, error) {
	d := domain{Type: "kvm", Name: "machine"}
	d.Memory.Unit, d.Memory.Value = "MiB", defaultmachine.Memory>>20
	d.VCPU = defaultmachine.CPUs
	board, ok := defaultmachine.BoardFor(arch)
	if !ok {
		return nil, fmt.Errorf("no default machine for architecture %s: specify the domain XML", arch)
	}
	d.OS.Type.Arch, d.OS.Type.Machine, d.OS.Type.Value = board.Arch, board.Machine, "hvm"
	d.OS.Boot.Dev = "hd"
	if board.UEFI || onlyUEFI(files) {
		d.OS.Firmware = "efi"
	}
	if !board.UEFI {
		d.Features.APIC = &struct{}{}
	}
	d.CPU.Mode = "host-model"
	disks, cdroms := 0, 0
	for _, file := range files {
		if !file.Top {
			continue
		}
		disk := domainDisk{Type: "file", Device: "disk"}
		disk.Driver.Name, disk.Driver.Type = "qemu", file.Format
		disk.Source.File = file.Name
		if file.CDROM {
			disk.Device, disk.ReadOnly = "cdrom", &struct{}{}
			disk.Target.Dev, disk.Target.Bus = fmt.Sprintf("sd%c", 'a'+cdroms), "sata"
			cdroms++
		} else {
			disk.Target.Dev, disk.Target.Bus = fmt.Sprintf("vd%c", 'a'+disks), "virtio"
			disks++
		}
		d.Devices.Disks = append(d.Devices.Disks, disk)
	}
	if disks > 26 || cdroms > 26 {
		return nil, fmt.Errorf("%d disks and %d CD-ROMs: at most 26 of each without the domain's XML", disks, cdroms)
	}
	d.Devices.Interface.Type = "network"
	d.Devices.Interface.Source.Network = "default"
	d.Devices.Interface.Model.Type = "virtio"
	d.Devices.Serial.Type = "pty"
	d.Devices.RNG.Model = "virtio"
	d.Devices.RNG.Backend.Model, d.Devices.RNG.Backend.Value = "random", "/dev/urandom"
	raw, err := xml.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing domain XML: %w", err)
	}
	return append(raw, '\n'), nil
}

// onlyUEFI reports whether the first disk that can boot does so by UEFI alone.
func onlyUEFI(files []packing.File) bool {
	for _, file := range files {
		if !file.Top || file.CDROM {
			continue
		}
		var chain []bootdisk.File
		for f := &file; f != nil; f = f.Backing {
			chain = append(chain, bootdisk.File{Path: f.Path, Format: f.Format})
		}
		boots, err := bootdisk.LookAt(chain)
		if err != nil || boots.BIOS || boots.UEFI {
			return err == nil && !boots.BIOS
		}
	}
	return false
}

// domain is the part of libvirt's domain XML that defaultDomain writes, without libvirt's
// own types.
type domain struct {
	XMLName xml.Name `xml:"domain"`
	Type    string   `xml:"type,attr"`
	Name    string   `xml:"name"`
	Memory  struct {
		Unit  string `xml:"unit,attr"`
		Value int    `xml:",chardata"`
	} `xml:"memory"`
	VCPU int `xml:"vcpu"`
	OS   struct {
		Firmware string `xml:"firmware,attr,omitempty"`
		Type     struct {
			Arch    string `xml:"arch,attr"`
			Machine string `xml:"machine,attr"`
			Value   string `xml:",chardata"`
		} `xml:"type"`
		Boot struct {
			Dev string `xml:"dev,attr"`
		} `xml:"boot"`
	} `xml:"os"`
	Features struct {
		ACPI struct{}  `xml:"acpi"`
		APIC *struct{} `xml:"apic"`
	} `xml:"features"`
	CPU struct {
		Mode string `xml:"mode,attr"`
	} `xml:"cpu"`
	Devices struct {
		Disks     []domainDisk `xml:"disk"`
		Interface struct {
			Type   string `xml:"type,attr"`
			Source struct {
				Network string `xml:"network,attr"`
			} `xml:"source"`
			Model struct {
				Type string `xml:"type,attr"`
			} `xml:"model"`
		} `xml:"interface"`
		Serial struct {
			Type string `xml:"type,attr"`
		} `xml:"serial"`
		RNG struct {
			Model   string `xml:"model,attr"`
			Backend struct {
				Model string `xml:"model,attr"`
				Value string `xml:",chardata"`
			} `xml:"backend"`
		} `xml:"rng"`
	} `xml:"devices"`
}

type domainDisk struct {
	Type   string `xml:"type,attr"`
	Device string `xml:"device,attr"`
	Driver struct {
		Name string `xml:"name,attr"`
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File string `xml:"file,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
		Bus string `xml:"bus,attr"`
	} `xml:"target"`
	ReadOnly *struct{} `xml:"readonly"`
}
