// Package dhcp gives each machine on a libvirt network its own address, which libvirt's DHCP
// server reserves for the MAC address of the machine.
package dhcp
