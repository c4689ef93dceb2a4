// Package guestssh connects to the SSH server of a guest, logs in, and runs
// commands and terminals there. It uses no cgo and knows nothing of libvirt.
package guestssh
