package vm

import (
	"context"
	"time"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/internal/perboot"
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

// A bootNote is a [perboot.Cache].
type bootNote struct{ perboot.Cache }

func noteIn(dir, name string) bootNote { return bootNote{perboot.In(dir, name)} }

func (n bootNote) read() (string, time.Duration, bool) { return n.Read() }

func (n bootNote) write(text string) { n.Write(text) }
