// Package oci has the words that the packages below it share: references, images,
// what an image says of itself, progress, and the errors by which callers decide. It
// imports none of them, and nothing of libvirt.
//
// Between a registry and a base disk:
//
//	oci/transport  what a source and a destination of images are; reading checked
//	oci/registry   registries; containers/image is imported there alone
//	oci/layout     OCI layouts on this machine
//	oci/source     opens either; Inspect
//	oci/format     the formats of virtual machines in registries: manifest -> plan
//	oci/unpack     plan -> disks
//	oci/chain      names and backing files of the disks of an image
//	oci/space      the room on a file system, and what stays free of it
//	oci/store      images on this machine; Pull, Prune
//	oci/transfer   Fetch and Push, between registries and layouts
//	oci/export     disks -> layout
package oci
