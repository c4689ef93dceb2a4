// Package vm is everything between a base disk and a guest that answers:
// libvirt, overlays, the network of a guest, and SSH.
//
// It knows nothing of registries: whoever calls it describes a machine in a
// [Spec]. libvirt is its only database: what has to be known of a running
// machine stands in the metadata of its domain (see [record.Record]).
package vm
