package vm

import (
	"context"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/vm/virt"
)

// A Host is a connection to the libvirt daemon that runs the machines.
type Host struct {
	*virt.Host
	conn *libvirt.Connect
	uri  string
}

// Open connects to libvirt: see [virt.Open].
func Open(ctx context.Context, uri string) (*Host, error) {
	h, err := virt.Open(ctx, uri)
	if err != nil {
		return nil, err
	}
	return &Host{Host: h, conn: h.Libvirt(), uri: h.URI()}, nil
}

func await[T any](ctx context.Context, what string, call func() (T, error)) (T, error) {
	return virt.Await(ctx, what, call)
}

func awaitDone(ctx context.Context, what string, call func() error) error {
	return virt.AwaitDone(ctx, what, call)
}

func isCode(err error, code libvirt.ErrorNumber) bool { return virt.IsCode(err, code) }
