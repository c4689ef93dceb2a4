package virt

import (
	"context"
	"fmt"
)

// Await runs one call of the libvirt library, which knows no deadlines, and
// gives it up when ctx ends. The call itself goes on until the daemon answers
// or this process ends.
func Await[T any](ctx context.Context, what string, call func() (T, error)) (T, error) {
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

// AwaitDone is [Await] for calls that return only an error.
func AwaitDone(ctx context.Context, what string, call func() error) error {
	_, err := Await(ctx, what, func() (struct{}, error) { return struct{}{}, call() })
	return err
}
