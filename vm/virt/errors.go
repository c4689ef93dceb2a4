package virt

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"gitlab-sardine-executor/vm/errdefs"
)

// A readableError is an error of libvirt with a readable text. The library's own text begins with
// numbers: "virError(Code=38, Domain=7, Message='…')".
type readableError struct{ Cause libvirt.Error }

func (e readableError) Error() string {
	if e.isDisconnect() {
		return errdefs.ErrDisconnected.Error()
	}
	return strings.TrimPrefix(e.Cause.Message, internalError)
}

// internalError is libvirt's prefix for errors without a better code, whatever their cause
// (src/util/virerror.c). Readers would take it for an error of this program.
const internalError = "internal error: "

// Is reports whether e is an [errdefs.ErrDisconnected].
func (e readableError) Is(target error) bool {
	return target == errdefs.ErrDisconnected && e.isDisconnect()
}

// disconnects are the messages of libvirt's RPC client for a connection that broke
// (src/rpc/virnetclient.c, virnetsocket.c). There is no error code for that.
var disconnects = []string{
	"client socket is closed", "received hangup event on socket",
	"End of file while reading data", "Cannot write data", "Cannot recv data",
}

func (e readableError) isDisconnect() bool {
	return e.Cause.Domain == libvirt.FROM_RPC &&
		slices.ContainsFunc(disconnects, func(text string) bool { return strings.Contains(e.Cause.Message, text) })
}

func clean(err error) error {
	var lv libvirt.Error
	if errors.As(err, &lv) {
		return readableError{lv}
	}
	return err
}

// isCode reports whether err is libvirt's error of that code.
func isCode(err error, code libvirt.ErrorNumber) bool {
	var wrapped readableError
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
		if isCode(err, code) {
			return fmt.Errorf("%w: %w", errdefs.ErrInvalid, err)
		}
	}
	return err
}
