// Package guestshell starts shells in guests and runs the driver's own scripts there.
package guestshell

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gitlab-sardine-executor/vm/guestssh"
)

// A Guest runs commands, and returns their exit status.
type Guest interface {
	Run(ctx context.Context, command guestssh.Command) (int, error)
}

// stepMin is what a step after the login has at least, however late the login was.
const stepMin = 30 * time.Second

// Within runs a step of prepare that has to end at limit, the end of the setting timeout.
func Within(ctx context.Context, limit time.Time, step func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, max(time.Until(limit), stepMin))
	defer cancel()
	err := step(limited)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return fmt.Errorf("%w (the setting timeout)", err)
	}
	return err
}
