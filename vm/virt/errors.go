package virt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/vm/errdefs"
)

// ErrNoDomain: libvirt has no domain of that name.
var ErrNoDomain = errors.New("no such domain")

// ErrDisconnected: the daemon has ended the connection, as it does when it is
// restarted. Its machines go on; a new connection may find it again.
var ErrDisconnected = errors.New("the connection to libvirt broke (was its daemon restarted?)")

// ErrUnreachable: there is no connection to a libvirt daemon to be had: none runs, it
// is being restarted, or this user may not use it.
var ErrUnreachable = errors.New("libvirt cannot be reached")

// An Error is an error of libvirt as a person reads it. The library's own
// text begins with numbers: "virError(Code=38, Domain=7, Message='…')".
type Error struct{ Cause libvirt.Error }

func (e Error) Error() string {
	if e.isDisconnect() {
		return ErrDisconnected.Error()
	}
	return strings.TrimPrefix(e.Cause.Message, internalError)
}

// internalError is what libvirt begins with where it has no better code, whoever's
// fault it is (src/util/virerror.c): readers would take it for ours.
const internalError = "internal error: "

// Is makes it an [ErrDisconnected] where it is one.
func (e Error) Is(target error) bool { return target == ErrDisconnected && e.isDisconnect() }

// disconnects are what libvirt's RPC client says of a connection that it had
// (src/rpc/virnetclient.c, virnetsocket.c). There is no error code for that.
var disconnects = []string{
	"client socket is closed", "received hangup event on socket",
	"End of file while reading data", "Cannot write data", "Cannot recv data",
}

func (e Error) isDisconnect() bool {
	return e.Cause.Domain == libvirt.FROM_RPC &&
		slices.ContainsFunc(disconnects, func(text string) bool { return strings.Contains(e.Cause.Message, text) })
}

func clean(err error) error {
	var lv libvirt.Error
	if errors.As(err, &lv) {
		return Error{lv}
	}
	return err
}

// IsCode reports whether err is libvirt's error of that code.
func IsCode(err error, code libvirt.ErrorNumber) bool {
	var wrapped Error
	if errors.As(err, &wrapped) {
		return wrapped.Cause.Code == code
	}
	var lv libvirt.Error
	return errors.As(err, &lv) && lv.Code == code
}

// ClassifyXML makes err an [errdefs.ErrInvalid] if libvirt or QEMU rejected the XML of a
// domain.
func ClassifyXML(err error) error {
	for _, code := range []libvirt.ErrorNumber{libvirt.ERR_CONFIG_UNSUPPORTED, libvirt.ERR_XML_ERROR, libvirt.ERR_XML_INVALID_SCHEMA} {
		if IsCode(err, code) {
			return fmt.Errorf("%w: %w", errdefs.ErrInvalid, err)
		}
	}
	return err
}
