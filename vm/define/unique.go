package define

import (
	"crypto/rand"
	"fmt"
	"net"
	"slices"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/errdefs"
)

// makeUnique gives a cloned domain its own values for what only one domain of a host can
// have, except name, UUID and files. It returns notes on changes that may matter to the
// administrator.
//
// Devices of the host are not changed: libvirt assigns them to one running machine at a
// time.
func makeUnique(d *libvirtxml.Domain, o CloneOptions) (notes []string, err error) {
	if d.GenID != nil {
		d.GenID = &libvirtxml.DomainGenID{} // tells the guest that it was cloned
	}
	forgetSystemUUID(d.SysInfo)
	if err := setMACs(d.Devices.Interfaces, o.MAC); err != nil {
		return nil, err
	}
	for i := range d.Devices.Interfaces {
		if err := freeInterface(&d.Devices.Interfaces[i], i+1); err != nil {
			return nil, err
		}
	}
	for i := range d.Devices.Memorydevs {
		m := &d.Devices.Memorydevs[i]
		if m.Source != nil && m.Source.Path != "" && (m.Target == nil || m.Target.ReadOnly == nil) {
			return nil, fmt.Errorf("%w: its memory device %d writes to %s, which only one machine can use", errdefs.ErrInvalid, i+1, m.Source.Path)
		}
	}
	notes = append(freeScreens(d.Devices.Graphics), freeCharacterDevices(d.Devices)...)
	notes = append(notes, freeTPMs(d.Devices.TPMs, o.Start == CloneEphemeral)...)
	if v := d.Devices.VSock; v != nil && v.CID != nil && v.CID.Auto != "yes" {
		notes = append(notes, "vsock: new CID")
		v.CID = &libvirtxml.DomainVSockCID{Auto: "yes"}
	}
	if d.Devices.PStore != nil {
		d.Devices.PStore.Path = "" // libvirt names it after the domain
	}
	return notes, nil
}

// forgetSystemUUID removes the UUID from the SMBIOS data. libvirt accepts only the domain's
// own UUID there.
func forgetSystemUUID(sysinfo []libvirtxml.DomainSysInfo) {
	for _, s := range sysinfo {
		if s.SMBIOS != nil && s.SMBIOS.System != nil {
			system := s.SMBIOS.System
			system.Entry = slices.DeleteFunc(system.Entry, func(e libvirtxml.DomainSysInfoEntry) bool { return e.Name == "uuid" })
		}
	}
}

// parseMAC parses the MAC address for a NIC.
func parseMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("%w: %q is not a MAC address (want one like 52:54:00:12:34:56)", errdefs.ErrInvalid, text)
	}
	if mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return "", fmt.Errorf("%w: %q is a group or null MAC address", errdefs.ErrInvalid, text)
	}
	return mac.String(), nil
}

// newMAC returns a random address from the range of QEMU and KVM.
func newMAC() string {
	mac := net.HardwareAddr{0x52, 0x54, 0x00, 0, 0, 0}
	rand.Read(mac[3:]) // never fails (crypto/rand)
	return mac.String()
}

// setMACs gives the only NIC the requested address, or each NIC a new one.
func setMACs(nics []libvirtxml.DomainInterface, mac string) error {
	if mac != "" && len(nics) != 1 {
		return fmt.Errorf("%w: a MAC address requires a domain with one NIC, and this one has %d (without it, each gets a new address)", errdefs.ErrInvalid, len(nics))
	}
	for i := range nics {
		address := mac
		if address == "" {
			address = newMAC()
		}
		nics[i].MAC = &libvirtxml.DomainInterfaceMAC{Address: address}
	}
	return nil
}

// freeInterface drops the names of a NIC on the host: libvirt chooses new ones.
func freeInterface(nic *libvirtxml.DomainInterface, number int) error {
	if nic.Source != nil && nic.Source.VHostUser != nil {
		return fmt.Errorf("%w: its NIC %d uses a vhost-user socket, which serves one machine", errdefs.ErrInvalid, number)
	}
	if t := nic.Target; t != nil {
		if t.Managed == "no" {
			return fmt.Errorf("%w: its NIC %d uses the device %s, which serves one machine", errdefs.ErrInvalid, number, t.Dev)
		}
		nic.Target = nil
	}
	if p := nic.VirtualPort; p != nil && p.Params != nil {
		if p.Params.OpenVSwitch != nil {
			p.Params.OpenVSwitch.InterfaceID = ""
		}
		if p.Params.Any != nil {
			p.Params.Any.InterfaceID = ""
		}
	}
	return nil
}

// freeScreens lets libvirt choose ports and sockets of VNC, SPICE and RDP.
func freeScreens(graphics []libvirtxml.DomainGraphic) (notes []string) {
	moved := func(what string, port int) {
		if port > 0 {
			notes = append(notes, fmt.Sprintf("%s: a port chosen at start, not %d", what, port))
		}
	}
	for i := range graphics {
		g := &graphics[i]
		switch {
		case g.VNC != nil:
			if g.VNC.AutoPort != "yes" {
				moved("VNC", g.VNC.Port)
			}
			moved("VNC over WebSocket", g.VNC.WebSocket)
			g.VNC.Port, g.VNC.AutoPort, g.VNC.Socket = 0, "yes", ""
			if g.VNC.WebSocket > 0 {
				g.VNC.WebSocket = -1
			}
			freeListeners(g.VNC.Listeners)
		case g.Spice != nil:
			if g.Spice.AutoPort != "yes" {
				moved("SPICE", g.Spice.Port)
				moved("SPICE over TLS", g.Spice.TLSPort)
			}
			g.Spice.Port, g.Spice.TLSPort, g.Spice.AutoPort = 0, 0, "yes"
			freeListeners(g.Spice.Listeners)
		case g.RDP != nil:
			if g.RDP.AutoPort != "yes" {
				moved("RDP", g.RDP.Port)
			}
			g.RDP.Port, g.RDP.AutoPort = 0, "yes"
		}
	}
	return notes
}

func freeListeners(listeners []libvirtxml.DomainGraphicListener) {
	for i := range listeners {
		if s := listeners[i].Socket; s != nil {
			s.Socket = "" // libvirt names it after the domain
		}
	}
}

// freeCharacterDevices gives serial ports, consoles and channels their own back ends on the
// host.
func freeCharacterDevices(d *libvirtxml.DomainDeviceList) (notes []string) {
	free := func(what string, number int, source **libvirtxml.DomainChardevSource, log **libvirtxml.DomainChardevLog) {
		if !isSharable(*source) {
			*source = &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}
			notes = append(notes, fmt.Sprintf("%s %d: a pty, because two machines cannot share the source's back end", what, number))
		}
		if *log != nil {
			*log = nil
			notes = append(notes, fmt.Sprintf("%s %d: no log file, because two machines cannot share one", what, number))
		}
	}
	for i := range d.Serials {
		free("serial port", i+1, &d.Serials[i].Source, &d.Serials[i].Log)
	}
	for i := range d.Parallels {
		free("parallel port", i+1, &d.Parallels[i].Source, &d.Parallels[i].Log)
	}
	for i := range d.Consoles {
		c := &d.Consoles[i]
		if said := len(notes); i == 0 && len(d.Serials) > 0 && (c.Target == nil || c.Target.Type == "" || c.Target.Type == "serial") {
			free("console", 1, &c.Source, &c.Log)
			notes = notes[:said] // for libvirt it is the first serial port, which has its notes already
			continue
		}
		free("console", i+1, &c.Source, &c.Log)
	}
	for i := range d.Channels {
		c := &d.Channels[i]
		if c.Source != nil && c.Source.UNIX != nil && c.Source.UNIX.Mode != "connect" && c.Target != nil && c.Target.VirtIO != nil {
			c.Source.UNIX.Path = "" // libvirt names it after the domain
			c.Target.VirtIO.State = ""
			continue
		}
		free("channel", i+1, &c.Source, &c.Log)
	}
	return notes
}

// isSharable reports whether two machines can have the same back end: libvirt creates it for
// each, or they are its clients.
func isSharable(s *libvirtxml.DomainChardevSource) bool {
	switch {
	case s == nil:
		return true
	case s.TCP != nil:
		return s.TCP.Mode != "bind"
	case s.UNIX != nil:
		return s.UNIX.Mode == "connect"
	case s.UDP != nil:
		return s.UDP.BindService == ""
	}
	return s.File == nil && s.Pipe == nil && s.Dev == nil && s.NMDM == nil
}

// freeTPMs gives emulated TPMs a new state, which libvirt stores by the UUID of the domain.
// The state of an ephemeral clone is removed with it.
func freeTPMs(tpms []libvirtxml.DomainTPM, ephemeral bool) (notes []string) {
	for i := range tpms {
		if tpms[i].Backend == nil || tpms[i].Backend.Emulator == nil {
			continue
		}
		emulator := tpms[i].Backend.Emulator
		emulator.Source = nil
		if ephemeral {
			emulator.PersistentState = ""
		}
		notes = append(notes, "TPM: a new one, without the keys of the source")
	}
	return notes
}
