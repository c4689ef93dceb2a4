// Package disk creates the files of machines: overlays on the disks of an image, and UEFI
// variables. It also restores the owners of shared disks.
package disk
