package rpc

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A Code tells programs how a call ended. The numbers are gRPC's.
type Code int

const (
	OK                 Code = 0
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	PermissionDenied   Code = 7
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	Unimplemented      Code = 12
	Internal           Code = 13
	Unavailable        Code = 14
)

// A failure is a status other than [OK].
type failure struct {
	code    Code
	message string
}

func (f *failure) Error() string { return f.message }

// Errorf returns an error with a code, also for those that wrap it.
func Errorf(code Code, format string, args ...any) error {
	return &failure{code, fmt.Sprintf(format, args...)}
}

func statusOf(err error) (code Code, message string) {
	if err == nil {
		return OK, ""
	}
	code, message = Unknown, err.Error()
	if f, ok := errors.AsType[*failure](err); ok {
		code = f.code
	}
	return code, strings.ToValidUTF8(message, string(utf8.RuneError))
}
