// Package virt is the connection to libvirt. It gives the calls of the libvirt
// library deadlines and readable errors, so that other packages need not import the
// library (cgo) themselves.
package virt
