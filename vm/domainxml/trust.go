package domainxml

import "libvirt.org/go/libvirtxml"

// trust adds to a rebuilt domain what only a trusted document may have: see
// [Options].Trusted.
func trust(in, out *libvirtxml.Domain) {
	out.QEMUCommandline = in.QEMUCommandline
	out.QEMUCapabilities = in.QEMUCapabilities
	out.QEMUOverride = in.QEMUOverride
	out.QEMUDeprecation = in.QEMUDeprecation

	out.OS, out.CPU, out.Features, out.SysInfo = in.OS, in.CPU, in.Features, in.SysInfo
	out.MaximumMemory, out.MemoryBacking, out.MemoryTune = in.MaximumMemory, in.MemoryBacking, in.MemoryTune
	out.BlockIOTune = in.BlockIOTune
	out.VCPUs = in.VCPUs
	if in.VCPU != nil {
		out.VCPU = in.VCPU
	}
	out.CPUTune, out.NUMATune = in.CPUTune, in.NUMATune
	out.IOThreads, out.IOThreadIDs, out.DefaultIOThread = in.IOThreads, in.IOThreadIDs, in.DefaultIOThread
	out.LaunchSecurity = in.LaunchSecurity

	if in.Devices == nil {
		return
	}
	out.Devices.Emulator = in.Devices.Emulator
	out.Devices.Hostdevs = in.Devices.Hostdevs
	out.Devices.Filesystems = in.Devices.Filesystems
	out.Devices.Shmems = in.Devices.Shmems
	out.Devices.VSock = in.Devices.VSock
	out.Devices.Memorydevs = in.Devices.Memorydevs
}
