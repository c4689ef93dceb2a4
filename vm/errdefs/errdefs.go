// Package errdefs defines the errors that several packages below vm return and
// that callers act on.
package errdefs

import "errors"

// ErrInvalid: the machine cannot be created as requested: an unknown network, a
// missing program, a value out of range. Retrying does not help.
var ErrInvalid = errors.New("the machine cannot be made")
