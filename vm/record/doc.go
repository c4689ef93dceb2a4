// Package record keeps what is known of a job's machine in the metadata of its domain,
// and lists these machines. libvirt is the only database.
package record
