// Package boot holds the tests of package vm that boot machines: real
// guests, under the system's libvirtd and an ordinary user's, on a host of their
// own (see internal/testbed). It has no other code.
package boot
