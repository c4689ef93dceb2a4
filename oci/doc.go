// Package oci is everything between a registry and a base disk: references,
// credentials, OCI layouts, the image formats in which people keep virtual
// machines in registries, and the local store of unpacked images.
//
// It knows nothing of libvirt. It is the only package that imports
// containers/image, so that its import path can be changed in one place.
package oci
