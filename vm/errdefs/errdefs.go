// Package errdefs defines the errors that several packages below vm return and
// that callers act on.
package errdefs

import "errors"

var (
	// ErrInvalid: the machine cannot be created as requested: an unknown network, a
	// missing program, a value out of range. Retrying does not help.
	ErrInvalid = errors.New("the machine cannot be made")
	// ErrExists: there is a domain of that name already.
	ErrExists = errors.New("domain exists already")
)
