// Package domainxml turns the untrusted libvirt domain XML of an image into a domain that
// cannot harm the host.
//
// [Rebuild] does not edit the document. It reads the facts that it knows to be harmless,
// checks each against a list, a pattern or a range, and writes a new domain with them.
// Everything else is dropped, also elements that future versions of libvirt add.
//
// # What a guest keeps
//
//   - the machine: architecture, machine type, vCPUs and topology, CPU model and
//     features, memory, clock and timers, features, firmware by name, boot order;
//   - every PCI, USB, SATA, SCSI, IDE and virtio-serial controller with its
//     address, and the address of every device: the names of network cards in
//     the guest (enp1s0) depend on them;
//   - disks that are layers of the image, network cards without their host side,
//     random number generator (always /dev/urandom), emulated TPM, first video
//     card, sound card (connected to nothing), input devices, guest agent
//     channel, serial ports (always pty), watchdog, balloon, panic device,
//     emulated IOMMU, USB hubs.
//
// # What is dropped, and listed in [Result.Dropped]
//
// hostdev, filesystem, shmem, vsock, crypto, pstore, smartcard, redirdev, lease,
// parallel ports, graphics (a job's guest is headless), spice and other channels,
// resource, sysinfo, SMBIOS of the host, ACPI tables, numatune, cputune,
// memtune, blkiotune, I/O threads, memoryBacking, guest NUMA, launchSecurity,
// idmap, everything of another namespace, media of CD-ROM and floppy drives that
// are not layers, the file of a recognised UEFI firmware and its variable store.
//
// # What is refused
//
// What a guest cannot do without, with a [RefusedError] that names the
// element: a disk that is not a layer or is encrypted, direct kernel boot,
// qemu:commandline, unknown firmware, a persistent memory device, an unknown model
// of network card or controller, numbers out of range, and every document that is
// not plain XML (document type declarations, entities, other encodings, too large,
// too deep).
package domainxml
