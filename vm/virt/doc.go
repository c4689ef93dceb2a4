// Package virt connects to libvirt. It adds deadlines and readable errors to the calls of the
// libvirt library, and is the only package that imports it (cgo).
package virt
