// Package guestshell knows the shells of guests and holds the scripts that the driver
// runs there.
package guestshell

import (
	"context"

	"gitlab-sardine-executor/vm/guestssh"
)

// A Guest runs commands, and returns their exit status.
type Guest interface {
	Run(ctx context.Context, command guestssh.Command) (int, error)
}
