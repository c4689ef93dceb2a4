// Package oci defines the types that the packages below it share: references, images,
// descriptions of images, progress, and errors. It imports none of them.
//
// Between a registry and a base disk:
//
//	oci/transport  sources and destinations of images; verified reading
//	oci/registry   registries; the only user of containers/image
//	oci/layout     OCI layouts on the local file system
//	oci/source     opens a registry or a layout; Inspect
//	oci/format     the formats of virtual machine images: manifest -> plan
//	oci/unpack     plan -> disks
//	oci/chain      names and backing chains of the disks of an image
//	oci/space      free space and the reserve
//	oci/store      the local image store; Pull, Prune
//	oci/transfer   Fetch and Push, between registries and layouts
//	oci/export     disks -> layout
package oci
