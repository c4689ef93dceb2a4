package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
)

// ErrNoDomain: libvirt has no domain of that name.
var ErrNoDomain = errors.New("no such domain")

// ErrDisconnected: the daemon has ended the connection, as it does when it is
// restarted. Its machines go on; a new connection may find it again.
var ErrDisconnected = errors.New("the connection to libvirt broke (was its daemon restarted?)")

// ErrUnreachable: there is no connection to a libvirt daemon to be had: none runs, it
// is being restarted, or this user may not use it.
var ErrUnreachable = errors.New("libvirt cannot be reached")

// A Host is a connection to the libvirt daemon that runs the machines.
type Host struct {
	conn *libvirt.Connect
	uri  string
}

// DefaultURI is where virsh would connect to: the system daemon as root, the
// user's own otherwise.
func DefaultURI() string {
	if os.Geteuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

// Open connects to libvirt; an empty uri means [DefaultURI]. The libvirt
// library cannot be interrupted, so that Open, like everything that asks the
// daemon, returns when ctx ends and leaves the call to end by itself.
func Open(ctx context.Context, uri string) (*Host, error) {
	if uri == "" {
		uri = DefaultURI()
	}
	conn, err := await(ctx, "connect to libvirt at "+uri, func() (*libvirt.Connect, error) {
		return libvirt.NewConnect(uri)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w: is libvirtd running, and may this user use it? (try: virsh -c %s list)", ErrUnreachable, err, uri)
	}
	return &Host{conn: conn, uri: uri}, nil
}

// Close ends the connection. Machines go on.
func (h *Host) Close() error {
	_, err := h.conn.Close()
	return err
}

// URI is what libvirt was reached by.
func (h *Host) URI() string { return h.uri }

// System says whether the machines run under the system daemon, and so with
// other rights than this process.
func (h *Host) System() bool { return strings.HasSuffix(strings.SplitN(h.uri, "?", 2)[0], "/system") }

// Domain finds a domain by its name; the error is [ErrNoDomain] if there is
// none.
func (h *Host) domain(ctx context.Context, name string) (*libvirt.Domain, error) {
	dom, err := await(ctx, "look up domain "+name, func() (*libvirt.Domain, error) {
		return h.conn.LookupDomainByName(name)
	})
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return nil, fmt.Errorf("%w: %s at %s", ErrNoDomain, name, h.uri)
	}
	return dom, err
}

// await runs one call of the libvirt library, which knows no deadlines, and
// gives it up when ctx ends. The call itself goes on until the daemon answers
// or this process ends.
func await[T any](ctx context.Context, what string, call func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		v, err := call()
		answers <- answer{v, err}
	}()
	var none T
	select {
	case a := <-answers:
		if a.err != nil {
			return none, fmt.Errorf("%s: %w", what, clean(a.err))
		}
		return a.value, nil
	case <-ctx.Done():
		return none, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// awaitDone is [await] for calls that return only an error.
func awaitDone(ctx context.Context, what string, call func() error) error {
	_, err := await(ctx, what, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// libvirtError is an error of libvirt as a person reads it. The library's own
// text begins with numbers: "virError(Code=38, Domain=7, Message='…')".
type libvirtError struct{ cause libvirt.Error }

func (e libvirtError) Error() string {
	if e.isDisconnect() {
		return ErrDisconnected.Error()
	}
	return strings.TrimPrefix(e.cause.Message, internalError)
}

// internalError is what libvirt begins with where it has no better code, whoever's
// fault it is (src/util/virerror.c): readers would take it for ours.
const internalError = "internal error: "

// Is makes it an [ErrDisconnected] where it is one.
func (e libvirtError) Is(target error) bool { return target == ErrDisconnected && e.isDisconnect() }

// disconnects are what libvirt's RPC client says of a connection that it had
// (src/rpc/virnetclient.c, virnetsocket.c). There is no error code for that.
var disconnects = []string{
	"client socket is closed", "received hangup event on socket",
	"End of file while reading data", "Cannot write data", "Cannot recv data",
}

func (e libvirtError) isDisconnect() bool {
	return e.cause.Domain == libvirt.FROM_RPC &&
		slices.ContainsFunc(disconnects, func(text string) bool { return strings.Contains(e.cause.Message, text) })
}

func clean(err error) error {
	var lv libvirt.Error
	if errors.As(err, &lv) {
		return libvirtError{lv}
	}
	return err
}

func isCode(err error, code libvirt.ErrorNumber) bool {
	var wrapped libvirtError
	if errors.As(err, &wrapped) {
		return wrapped.cause.Code == code
	}
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == code
}
