// Package qcow2 reads the headers of disk images that strangers made, before
// anything else opens them.
package qcow2
