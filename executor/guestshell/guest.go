// Package guestshell starts shells in guests and runs the driver's own scripts there.
package guestshell

import (
	"context"

	"gitlab-sardine-executor/vm/guestssh"
)

// A Guest runs commands, and returns their exit status.
type Guest interface {
	Run(ctx context.Context, command guestssh.Command) (int, error)
}
