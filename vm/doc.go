// Package vm starts and removes the machines of jobs, and runs commands in their guests.
//
// A [Spec] describes a machine, [Start] starts it, [Started.WaitReady] waits for its guest,
// and [Find] finds it in a later stage.
//
// The packages below it do the parts: libvirt, disks, domain, network, SSH. None of them
// imports vm, and none knows about registries. libvirt is the only database: what is
// known of a running machine is in the metadata of its domain (see [record.Record]).
package vm
