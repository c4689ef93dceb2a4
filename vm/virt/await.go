package virt

import (
	"context"
	"fmt"
)

// await runs one call of the libvirt library, which has no deadlines, and returns when ctx
// ends. The call itself continues until the daemon answers or this process ends.
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
