package virt

import (
	"errors"
	"testing"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/vm/errdefs"
)

// A connection that the daemon closed is distinguished from a failed connection, and from
// errors that the daemon reports.
func TestDisconnected(t *testing.T) {
	for _, test := range []struct {
		err  libvirt.Error
		want bool
	}{
		{libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Domain: libvirt.FROM_RPC, Message: "internal error: client socket is closed"}, true},
		{libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC, Message: "Cannot write data: Broken pipe"}, true},
		{libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC, Message: "End of file while reading data: Input/output error"}, true},
		{libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC, Message: "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Connection refused"}, false},
		{libvirt.Error{Code: libvirt.ERR_NO_DOMAIN, Domain: libvirt.FROM_QEMU, Message: "Domain not found: client socket is closed"}, false},
	} {
		if got := errors.Is(clean(test.err), errdefs.ErrDisconnected); got != test.want {
			t.Errorf("%s: disconnected is %t", test.err.Message, got)
		}
	}
}

// The prefix of libvirt's internal errors is removed.
func TestErrorOfLibvirt(t *testing.T) {
	err := clean(libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "internal error: process exited while connecting to monitor"})
	if got := err.Error(); got != "process exited while connecting to monitor" {
		t.Errorf("got %q", got)
	}
}
