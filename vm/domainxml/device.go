package domainxml

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// Limits of the number of devices.
const (
	maxControllers = 128 // virt-install adds fourteen spare PCIe ports
	maxDisks       = 32
	maxNICs        = 16
	maxSmall       = 16 // of devices that a machine has one or two of
)

// devices rebuilds <devices> kind by kind.
func (r *rebuilder) devices(in, out *libvirtxml.Domain) error {
	out.Devices = &libvirtxml.DomainDeviceList{}
	if in.Devices == nil {
		return nil
	}
	i, o := in.Devices, out.Devices
	for _, err := range []error{
		rebuildEach(&o.Disks, "disk", i.Disks, maxDisks, r.disk),
		rebuildEach(&o.Controllers, "controller", i.Controllers, maxControllers, r.controller),
		rebuildEach(&o.Interfaces, "interface", i.Interfaces, maxNICs, r.nic),
		rebuildEach(&o.Serials, "serial", i.Serials, maxSmall, r.serial),
		rebuildEach(&o.Consoles, "console", i.Consoles, maxSmall, r.console),
		rebuildEach(&o.Channels, "channel", i.Channels, maxSmall, r.channel),
		rebuildEach(&o.Inputs, "input", i.Inputs, maxSmall, r.input),
		rebuildEach(&o.TPMs, "tpm", i.TPMs, 1, r.tpm),
		rebuildEach(&o.Sounds, "sound", i.Sounds, maxSmall, r.sound),
		rebuildEach(&o.Videos, "video", i.Videos, maxSmall, r.video),
		rebuildEach(&o.Hubs, "hub", i.Hubs, maxSmall, r.hub),
		rebuildEach(&o.Watchdogs, "watchdog", i.Watchdogs, maxSmall, r.watchdog),
		rebuildOne(&o.MemBalloon, "memballoon", i.MemBalloon, r.balloon),
		rebuildEach(&o.RNGs, "rng", i.RNGs, maxSmall, r.rng),
		rebuildEach(&o.Panics, "panic", i.Panics, maxSmall, r.panicDevice),
		rebuildOne(&o.IOMMU, "iommu", i.IOMMU, r.iommu),
		r.memoryDevices(i.Memorydevs),
	} {
		if err != nil {
			return err
		}
	}
	if len(i.Audios) > 0 || len(o.Sounds) > 0 {
		o.Audios = []libvirtxml.DomainAudio{{ID: 1, None: &libvirtxml.DomainAudioNone{}}}
	}
	return nil
}

// rebuildEach rebuilds the devices of one kind. A nil result drops the device.
func rebuildEach[T any](out *[]T, kind string, in []T, limit int, rebuild func(string, *T) (*T, error)) error {
	if len(in) > limit {
		return refuse("devices/"+kind, "there are %d of them, at most %d are accepted", len(in), limit)
	}
	for n := range in {
		d, err := rebuild(fmt.Sprintf("devices/%s[%d]", kind, n+1), &in[n])
		if err != nil {
			return err
		}
		if d != nil {
			*out = append(*out, *d)
		}
	}
	return nil
}

// rebuildOne is the same for a device that exists once.
func rebuildOne[T any](out **T, kind string, in *T, rebuild func(string, *T) (*T, error)) (err error) {
	if in == nil {
		return nil
	}
	*out, err = rebuild("devices/"+kind, in)
	return err
}

var (
	virtioModels = []string{"virtio", "virtio-transitional", "virtio-non-transitional"}
	serialTypes  = []string{
		"isa-serial", "usb-serial", "pci-serial", "system-serial", "spapr-vio-serial", "sclp-serial", "isa-debug",
	}
	serialModels = []string{
		"isa-serial", "usb-serial", "pci-serial", "pl011", "16550a", "spapr-vty", "sclpconsole", "sclplmconsole",
		"isa-debugcon",
	}
)

func pty() *libvirtxml.DomainChardevSource {
	return &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}
}

// serial keeps a port and replaces its back end by a pty.
func (r *rebuilder) serial(element string, in *libvirtxml.DomainSerial) (_ *libvirtxml.DomainSerial, err error) {
	out := &libvirtxml.DomainSerial{Source: pty(), Alias: r.alias(in.Alias)}
	if t := in.Target; t != nil {
		out.Target = &libvirtxml.DomainSerialTarget{Type: oneOf(t.Type, serialTypes...), Port: upTo(t.Port, maxSmall)}
		if t.Model != nil && oneOf(t.Model.Name, serialModels...) != "" {
			out.Target.Model = &libvirtxml.DomainSerialTargetModel{Name: t.Model.Name}
		}
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

func (r *rebuilder) console(element string, in *libvirtxml.DomainConsole) (_ *libvirtxml.DomainConsole, err error) {
	out := &libvirtxml.DomainConsole{Source: pty(), Alias: r.alias(in.Alias)}
	if t := in.Target; t != nil {
		out.Target = &libvirtxml.DomainConsoleTarget{
			Type: oneOf(t.Type, "serial", "virtio", "sclp", "sclplm"), Port: upTo(t.Port, maxSmall),
		}
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// guestAgent keeps the channel of the QEMU guest agent, the only one that the driver uses.
// libvirt chooses its socket.
const guestAgent = "org.qemu.guest_agent.0"

func (r *rebuilder) channel(element string, in *libvirtxml.DomainChannel) (_ *libvirtxml.DomainChannel, err error) {
	if in.Target == nil || in.Target.VirtIO == nil || in.Target.VirtIO.Name != guestAgent {
		return nil, nil
	}
	out := agentChannel()
	out.Alias = r.alias(in.Alias)
	out.Address, err = address(element, in.Address)
	return out, err
}

func agentChannel() *libvirtxml.DomainChannel {
	return &libvirtxml.DomainChannel{
		Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{}},
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: guestAgent}},
	}
}

// input keeps emulated devices. Passthrough and evdev read devices of the host.
func (r *rebuilder) input(element string, in *libvirtxml.DomainInput) (_ *libvirtxml.DomainInput, err error) {
	if oneOf(in.Type, "mouse", "tablet", "keyboard") == "" {
		return nil, nil
	}
	out := &libvirtxml.DomainInput{
		Type:  in.Type,
		Bus:   oneOf(in.Bus, "ps2", "usb", "virtio"),
		Model: oneOf(in.Model, virtioModels...),
		ACPI:  acpiIndex(in.ACPI),
		Alias: r.alias(in.Alias),
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// tpm keeps the front end. The back end is always a new emulator (swtpm): an image cannot use
// the TPM of the host or the state of another machine.
func (r *rebuilder) tpm(element string, in *libvirtxml.DomainTPM) (_ *libvirtxml.DomainTPM, err error) {
	version := "2.0"
	if in.Backend != nil && in.Backend.Emulator != nil && in.Backend.Emulator.Version == "1.2" {
		version = "1.2"
	}
	if in.Backend == nil || in.Backend.Emulator == nil {
		r.replace(element+"/backend", "another backend", "emulator")
	}
	out := &libvirtxml.DomainTPM{
		Model:   oneOf(in.Model, "tpm-tis", "tpm-crb", "tpm-tis-device", "tpm-spapr"),
		Backend: &libvirtxml.DomainTPMBackend{Emulator: &libvirtxml.DomainTPMBackendEmulator{Version: version}},
		Alias:   r.alias(in.Alias),
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// sound keeps the card, since programs may need one. Its output is discarded (audio none).
func (r *rebuilder) sound(element string, in *libvirtxml.DomainSound) (_ *libvirtxml.DomainSound, err error) {
	if oneOf(in.Model, "ac97", "es1370", "ich6", "ich7", "ich9", "sb16", "usb") == "" {
		return nil, nil
	}
	out := &libvirtxml.DomainSound{Model: in.Model, ACPI: acpiIndex(in.ACPI), Alias: r.alias(in.Alias)}
	for _, c := range in.Codec {
		if len(out.Codec) < 4 && oneOf(c.Type, "duplex", "micro", "output") != "" {
			out.Codec = append(out.Codec, libvirtxml.DomainSoundCodec{Type: c.Type})
		}
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// maxVideoMemory is the maximum video memory in KiB, enough for two large screens.
const maxVideoMemory = 256 << 10

// video keeps the first card: a headless guest still uses it for its console and desktop. qxl
// and vmvga become VGA: they have no advantage without SPICE, and not all hosts support
// them.
func (r *rebuilder) video(element string, in *libvirtxml.DomainVideo) (_ *libvirtxml.DomainVideo, err error) {
	if element != "devices/video[1]" {
		return nil, nil
	}
	m := in.Model
	out := &libvirtxml.DomainVideo{ACPI: acpiIndex(in.ACPI), Alias: r.alias(in.Alias)}
	switch m.Type {
	case "vga", "virtio", "bochs", "cirrus", "ramfb", "none":
		out.Model.Type = m.Type
	case "qxl", "vmvga":
		r.replace(element+"/model", m.Type, "vga")
		out.Model.Type = "vga"
	default:
		return nil, nil
	}
	if m.Heads <= 4 && m.Type == out.Model.Type {
		out.Model.Heads = m.Heads
	}
	if m.VRam <= maxVideoMemory && m.Type == out.Model.Type {
		out.Model.VRam = m.VRam
	}
	out.Model.Primary = yesNo(m.Primary)
	out.Address, err = address(element, in.Address)
	return out, err
}

func (r *rebuilder) hub(element string, in *libvirtxml.DomainHub) (_ *libvirtxml.DomainHub, err error) {
	if in.Type != "usb" {
		return nil, nil
	}
	out := &libvirtxml.DomainHub{Type: "usb", Alias: r.alias(in.Alias)}
	out.Address, err = address(element, in.Address)
	return out, err
}

// watchdog keeps the device. Its action is never pause, which would hang the job, nor dump,
// which would write to the host. itco is part of every q35 and needs no element; libvirt
// before 9.1.0 rejects the element.
func (r *rebuilder) watchdog(element string, in *libvirtxml.DomainWatchdog) (_ *libvirtxml.DomainWatchdog, err error) {
	if oneOf(in.Model, "i6300esb", "ib700", "diag288") == "" {
		return nil, nil
	}
	out := &libvirtxml.DomainWatchdog{Model: in.Model, ACPI: acpiIndex(in.ACPI), Alias: r.alias(in.Alias)}
	out.Action = oneOf(in.Action, "reset", "shutdown", "poweroff", "none", "inject-nmi")
	if out.Action == "" && in.Action != "" {
		out.Action = "reset"
		r.replace(element+"/@action", "another action", "reset")
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

func (r *rebuilder) balloon(element string, in *libvirtxml.DomainMemBalloon) (_ *libvirtxml.DomainMemBalloon, err error) {
	if in.Model != "none" && oneOf(in.Model, virtioModels...) == "" {
		return nil, nil
	}
	out := &libvirtxml.DomainMemBalloon{
		Model:             in.Model,
		AutoDeflate:       onOff(in.AutoDeflate),
		FreePageReporting: onOff(in.FreePageReporting),
		ACPI:              acpiIndex(in.ACPI),
		Alias:             r.alias(in.Alias),
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// entropy is the only file of the host in a domain.
const entropy = "/dev/urandom"

func (r *rebuilder) rng(element string, in *libvirtxml.DomainRNG) (_ *libvirtxml.DomainRNG, err error) {
	if oneOf(in.Model, virtioModels...) == "" {
		return nil, nil
	}
	out := randomness(in.Model)
	if b := in.Backend; b == nil || b.Random == nil || (b.Random.Device != "" && b.Random.Device != entropy && b.Random.Device != "/dev/random") {
		r.replace(element+"/backend", "another source", entropy)
	}
	out.ACPI, out.Alias = acpiIndex(in.ACPI), r.alias(in.Alias)
	out.Address, err = address(element, in.Address)
	return out, err
}

func randomness(model string) *libvirtxml.DomainRNG {
	return &libvirtxml.DomainRNG{
		Model:   model,
		Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: entropy}},
	}
}

func (r *rebuilder) panicDevice(element string, in *libvirtxml.DomainPanic) (_ *libvirtxml.DomainPanic, err error) {
	out := &libvirtxml.DomainPanic{Model: oneOf(in.Model, "isa", "pvpanic", "hyperv", "pseries", "s390"), Alias: r.alias(in.Alias)}
	if out.Model == "" && in.Model != "" {
		return nil, nil
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

func (r *rebuilder) iommu(element string, in *libvirtxml.DomainIOMMU) (_ *libvirtxml.DomainIOMMU, err error) {
	if oneOf(in.Model, "intel", "amd", "smmuv3", "virtio") == "" {
		return nil, nil
	}
	out := &libvirtxml.DomainIOMMU{Model: in.Model, Alias: r.alias(in.Alias)}
	if d := in.Driver; d != nil {
		out.Driver = &libvirtxml.DomainIOMMUDriver{
			IntRemap: onOff(d.IntRemap), CachingMode: onOff(d.CachingMode), EIM: onOff(d.EIM), IOTLB: onOff(d.IOTLB),
		}
		if d.AWBits == 39 || d.AWBits == 48 || d.AWBits == 57 {
			out.Driver.AWBits = d.AWBits
		}
	}
	out.Address, err = address(element, in.Address)
	return out, err
}

// memoryDevices refuses devices with data in a file of the host. The others are dropped: their
// size is part of <memory>.
func (r *rebuilder) memoryDevices(in []libvirtxml.DomainMemorydev) error {
	if r.trusted {
		return nil
	}
	for n, d := range in {
		if oneOf(d.Model, "dimm", "virtio-mem", "sgx-epc") == "" {
			return refuse(fmt.Sprintf("devices/memory[%d]", n+1), "%q keeps its content in a file of the host", text(d.Model))
		}
	}
	return nil
}
