package domainxml

import (
	"math/bits"
	"path"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Limits of sizes. They prevent overflows; the administrator's limits are lower.
const (
	maxVCPUs     = 1024
	maxMemoryKiB = 16 << 30 // 16 TiB
)

// architectures are libvirt's names of the supported architectures.
var architectures = []string{"x86_64", "i686", "aarch64", "armv7l", "riscv64", "ppc64le", "s390x"}

// machineName matches QEMU's general-purpose boards with their versions and the variants of
// distributions: pc-q35-7.2, pc-i440fx-jammy, virt-8.1, pc-q35-rhel9.4.0.
var machineName = newPattern(`^(pc|q35|virt|microvm|pseries|s390-ccw-virtio|pc-(q35|i440fx)|(pc-q35|pc-i440fx|virt|pseries|s390-ccw-virtio)-[a-z]{0,12}[0-9]{0,3}(\.[0-9]{1,3}){0,2}(-hpb|-sxxm|-v[0-9])?)$`)

func (r *rebuilder) domainType(in, out *libvirtxml.Domain) error {
	switch in.Type {
	case "kvm", "qemu":
		out.Type = in.Type
	case "hvf": // macOS's accelerator
		out.Type = "kvm"
		r.replace("@type", "hvf", "kvm")
	default:
		return refuse("@type", "%q is not a QEMU machine; kvm and qemu are", text(in.Type))
	}
	if in.GenID != nil {
		out.GenID = &libvirtxml.DomainGenID{} // libvirt generates a new one for each machine
	}
	return nil
}

func (r *rebuilder) system(in, out *libvirtxml.Domain) error {
	if in.OS == nil || in.OS.Type == nil {
		return refuse("os/type", "it is missing")
	}
	if typ := strings.TrimSpace(in.OS.Type.Type); typ != "hvm" {
		return refuse("os/type", "%q is not a full virtual machine; hvm is", text(typ))
	}
	t := &libvirtxml.DomainOSType{
		Type:    "hvm",
		Arch:    oneOf(in.OS.Type.Arch, architectures...),
		Machine: matching(machineName, in.OS.Type.Machine),
	}
	if t.Arch == "" {
		return refuse("os/type/@arch", "%q is none of %s", text(in.OS.Type.Arch), strings.Join(architectures, ", "))
	}
	if t.Machine == "" && in.OS.Type.Machine != "" {
		return refuse("os/type/@machine", "%q is none of the general-purpose machines (pc, q35, virt and their versions)",
			text(in.OS.Type.Machine))
	}
	out.OS = &libvirtxml.DomainOS{Type: t}
	if r.trusted {
		return nil // trust keeps the rest
	}
	if err := refuseKernel(in.OS); err != nil {
		return err
	}
	if err := firmware(in.OS, out.OS); err != nil {
		return err
	}
	boot(in.OS, out.OS)
	return nil
}

// refuseKernel refuses direct kernel boot, which reads files of the host. Dropping it would
// leave a guest that does not start.
func refuseKernel(os *libvirtxml.DomainOS) error {
	for _, k := range []struct{ element, value string }{
		{"kernel", os.Kernel}, {"initrd", os.Initrd}, {"cmdline", os.Cmdline}, {"dtb", os.DTB}, {"shim", os.Shim},
	} {
		if k.value != "" {
			return refuse("os/"+k.element, "an image boots from its disks, not from files of the host")
		}
	}
	return nil
}

// firmware keeps the kind of firmware. libvirt selects the file on this host, and creates the
// variable store from its template.
func firmware(in, out *libvirtxml.DomainOS) error {
	switch in.Firmware {
	case "", "bios", "efi":
		out.Firmware = in.Firmware
	default:
		return refuse("os/@firmware", "%q is neither bios nor efi", text(in.Firmware))
	}
	if in.Loader != nil && strings.TrimSpace(in.Loader.Path) != "" && out.Firmware == "" {
		name := path.Base(strings.TrimSpace(in.Loader.Path))
		switch {
		case isUEFI(name):
			out.Firmware = "efi"
		case !isBIOS(name):
			return refuse("os/loader", "the firmware is none that is known by name (OVMF, AAVMF, edk2, SeaBIOS): use <os firmware='efi'>")
		}
	}
	if out.Firmware != "efi" {
		return nil
	}
	if l := in.Loader; l != nil && (yesNo(l.Secure) != "" || yesNo(l.Stateless) != "") {
		out.Loader = &libvirtxml.DomainLoader{Secure: yesNo(l.Secure), Stateless: yesNo(l.Stateless)}
	}
	out.FirmwareInfo = firmwareFeatures(in.FirmwareInfo)
	return nil
}

func firmwareFeatures(in *libvirtxml.DomainOSFirmwareInfo) *libvirtxml.DomainOSFirmwareInfo {
	if in == nil {
		return nil
	}
	out := &libvirtxml.DomainOSFirmwareInfo{}
	for _, name := range []string{"enrolled-keys", "secure-boot"} {
		for _, f := range in.Features {
			if f.Name == name && yesNo(f.Enabled) != "" {
				out.Features = append(out.Features, libvirtxml.DomainOSFirmwareFeature{Name: name, Enabled: f.Enabled})
				break
			}
		}
	}
	if len(out.Features) == 0 {
		return nil
	}
	return out
}

// isUEFI recognizes the file names of edk2 in distributions.
func isUEFI(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"ovmf", "aavmf", "edk2", "qemu_efi", "uefi", "riscv_virt"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// isBIOS recognizes SeaBIOS, the default of QEMU.
func isBIOS(name string) bool {
	return oneOf(name, "bios.bin", "bios-256k.bin", "bios-microvm.bin") != ""
}

func boot(in, out *libvirtxml.DomainOS) {
	for _, b := range in.BootDevices {
		if len(out.BootDevices) < 4 && oneOf(b.Dev, "hd", "cdrom", "network", "fd") != "" {
			out.BootDevices = append(out.BootDevices, libvirtxml.DomainBootDevice{Dev: b.Dev})
		}
	}
	// A boot menu waits for input: it can only be disabled.
	if in.BootMenu != nil && in.BootMenu.Enable == "no" {
		out.BootMenu = &libvirtxml.DomainBootMenu{Enable: "no"}
	}
	if in.BIOS == nil {
		return
	}
	b := &libvirtxml.DomainBIOS{UseSerial: yesNo(in.BIOS.UseSerial)}
	if t := in.BIOS.RebootTimeout; t != nil && *t >= -1 && *t <= 65535 {
		b.RebootTimeout = ptr(*t)
	}
	if b.UseSerial != "" || b.RebootTimeout != nil {
		out.BIOS = b
	}
}

func (r *rebuilder) memory(in, out *libvirtxml.Domain) error {
	if in.Memory == nil {
		return refuse("memory", "it is missing")
	}
	total, err := kibibytes("memory", in.Memory.Value, in.Memory.Unit)
	if err != nil {
		return err
	}
	out.Memory = &libvirtxml.DomainMemory{Value: total, Unit: "KiB"}
	if in.CurrentMemory == nil {
		return nil
	}
	current, err := kibibytes("currentMemory", in.CurrentMemory.Value, in.CurrentMemory.Unit)
	if err != nil {
		return err
	}
	out.CurrentMemory = &libvirtxml.DomainCurrentMemory{Value: min(current, total), Unit: "KiB"}
	return nil
}

// memoryUnits are libvirt's (virScaleInteger), in bytes.
var memoryUnits = map[string]uint64{
	"": 1 << 10, "b": 1, "bytes": 1, "byte": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3, "m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9, "t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
}

func kibibytes(element string, value uint, unit string) (uint, error) {
	scale, ok := memoryUnits[strings.ToLower(unit)]
	if !ok {
		return 0, refuse(element+"/@unit", "%q is not a unit of memory", text(unit))
	}
	over, size := bits.Mul64(uint64(value), scale)
	kib := size >> 10
	switch {
	case over != 0 || kib > maxMemoryKiB:
		return 0, refuse(element, "it is more than 16 TiB")
	case kib < 1024:
		return 0, refuse(element, "it is less than 1 MiB")
	}
	return uint(kib), nil
}

var (
	cpuModel   = newPattern(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	cpuFeature = newPattern(`^[a-z0-9][a-z0-9_-]{0,40}(\.[0-9])?$`) // sse4.1
	cpuVendor  = newPattern(`^[A-Za-z]{1,16}$`)
	vendorID   = newPattern(`^[A-Za-z0-9 !?_-]{1,12}$`) // a comma would begin another QEMU option
)

func (r *rebuilder) cpus(in, out *libvirtxml.Domain) error {
	n := uint(1)
	if in.VCPU != nil {
		n = in.VCPU.Value
	}
	if n < 1 || n > maxVCPUs {
		return refuse("vcpu", "%d is not between 1 and %d", n, maxVCPUs)
	}
	out.VCPU = &libvirtxml.DomainVCPU{Placement: "static", Value: n}
	if in.VCPU != nil && in.VCPU.Current > 0 && in.VCPU.Current < n {
		out.VCPU.Current = in.VCPU.Current
	}
	if in.CPU == nil || r.trusted {
		return nil
	}
	cpu, err := rebuildCPU(in.CPU)
	if err != nil {
		return err
	}
	cpu.Topology = topology(in.CPU.Topology, n)
	out.CPU = cpu
	return nil
}

func rebuildCPU(in *libvirtxml.DomainCPU) (*libvirtxml.DomainCPU, error) {
	out := &libvirtxml.DomainCPU{
		Match:      oneOf(in.Match, "minimum", "exact", "strict"),
		Mode:       oneOf(in.Mode, "custom", "host-model", "host-passthrough", "maximum"),
		Check:      oneOf(in.Check, "none", "partial", "full"),
		Migratable: onOff(in.Migratable),
		Vendor:     matching(cpuVendor, in.Vendor),
	}
	if out.Mode == "" && in.Mode != "" {
		return nil, refuse("cpu/@mode", "%q is none of custom, host-model, host-passthrough, maximum", text(in.Mode))
	}
	if m := in.Model; m != nil {
		name := strings.TrimSpace(m.Value)
		if name != "" && matching(cpuModel, name) == "" {
			return nil, refuse("cpu/model", "%q is not the name of a CPU model", text(name))
		}
		out.Model = &libvirtxml.DomainCPUModel{
			Value:    name,
			Fallback: oneOf(m.Fallback, "allow", "forbid"),
			VendorID: matching(vendorID, m.VendorID),
		}
	}
	seen := map[string]bool{}
	for _, f := range in.Features {
		policy := oneOf(f.Policy, "force", "require", "optional", "disable", "forbid")
		if matching(cpuFeature, f.Name) == "" || (policy == "" && f.Policy != "") || seen[f.Name] || len(seen) == 512 {
			continue
		}
		seen[f.Name] = true
		out.Features = append(out.Features, libvirtxml.DomainCPUFeature{Name: f.Name, Policy: policy})
	}
	if c := in.Cache; c != nil && c.Level <= 3 && oneOf(c.Mode, "emulate", "passthrough", "disable") != "" {
		out.Cache = &libvirtxml.DomainCPUCache{Level: c.Level, Mode: c.Mode}
	}
	if a := in.MaxPhysAddr; a != nil && a.Bits <= 64 && a.Limit <= 64 && oneOf(a.Mode, "emulate", "passthrough") != "" {
		out.MaxPhysAddr = &libvirtxml.DomainCPUMaxPhysAddr{Mode: a.Mode, Bits: a.Bits, Limit: a.Limit}
	}
	return out, nil
}

// topology is kept if it has the right number of vCPUs. libvirt rejects others.
func topology(in *libvirtxml.DomainCPUTopology, vcpus uint) *libvirtxml.DomainCPUTopology {
	if in == nil {
		return nil
	}
	product := uint(1)
	for _, n := range []int{in.Sockets, in.Dies, in.Clusters, in.Cores, in.Threads} {
		if n < 0 || n > maxVCPUs {
			return nil
		}
		product *= uint(max(n, 1)) // five factors up to 1024 stay below 2^64
	}
	if product != vcpus {
		return nil
	}
	return ptr(*in)
}

var timerNames = []string{"platform", "pit", "rtc", "hpet", "tsc", "kvmclock", "hypervclock", "armvtimer"}

func (r *rebuilder) clock(in, out *libvirtxml.Domain) error {
	if in.Clock == nil {
		return nil
	}
	c := &libvirtxml.DomainClock{Offset: oneOf(in.Clock.Offset, "utc", "localtime")}
	switch in.Clock.Offset {
	case "variable": // its adjustment is the drift of the machine that was exported
		c.Offset = in.Clock.Offset
		c.Basis = oneOf(in.Clock.Basis, "utc", "localtime")
	case "timezone", "absolute":
		c.Offset = "utc"
		r.replace("clock/@offset", in.Clock.Offset, "utc")
	}
	seen := map[string]bool{}
	for _, t := range in.Clock.Timer {
		if oneOf(t.Name, timerNames...) == "" || seen[t.Name] {
			continue
		}
		seen[t.Name] = true
		c.Timer = append(c.Timer, libvirtxml.DomainTimer{
			Name:       t.Name,
			Track:      oneOf(t.Track, "boot", "guest", "wall", "realtime"),
			TickPolicy: oneOf(t.TickPolicy, "delay", "catchup", "merge", "discard"),
			Mode:       oneOf(t.Mode, "auto", "native", "emulate", "paravirt", "smpsafe"),
			Present:    yesNo(t.Present),
		})
	}
	out.Clock = c
	return nil
}

// lifecycle makes a machine stop when its guest stops. After a crash it is neither restarted
// nor dumped: a dump would be a file on the host.
func (r *rebuilder) lifecycle(in, out *libvirtxml.Domain) error {
	out.OnPoweroff = r.action("on_poweroff", in.OnPoweroff, "destroy")
	out.OnReboot = r.action("on_reboot", in.OnReboot, "restart", "destroy")
	out.OnCrash = r.action("on_crash", in.OnCrash, "destroy")
	if in.PM != nil {
		pm := &libvirtxml.DomainPM{SuspendToMem: pmPolicy(in.PM.SuspendToMem), SuspendToDisk: pmPolicy(in.PM.SuspendToDisk)}
		if pm.SuspendToMem != nil || pm.SuspendToDisk != nil {
			out.PM = pm
		}
	}
	return nil
}

// action returns the requested action if it is allowed, and otherwise the first allowed one.
func (r *rebuilder) action(element, wanted string, allowed ...string) string {
	if oneOf(wanted, allowed...) != "" || wanted == "" {
		return wanted
	}
	was := oneOf(wanted, "destroy", "restart", "preserve", "rename-restart", "coredump-destroy", "coredump-restart")
	if was == "" {
		was = "an unknown action"
	}
	r.replace(element, was, allowed[0])
	return allowed[0]
}

func pmPolicy(in *libvirtxml.DomainPMPolicy) *libvirtxml.DomainPMPolicy {
	if in == nil || yesNo(in.Enabled) == "" {
		return nil
	}
	return &libvirtxml.DomainPMPolicy{Enabled: in.Enabled}
}
