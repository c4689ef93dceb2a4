package virt

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"
)

// errClosed: the connection is closed, or the handle of a domain freed.
var errClosed = errors.New("the connection to libvirt is closed")

// calls are those that use an object of the library. The library crashes if an object is
// released while one of them uses it.
type calls struct {
	release func() error

	mu      sync.Mutex
	running int
	closed  bool
}

func (c *calls) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	c.running++
	return nil
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running--; c.running == 0 && c.closed {
		_ = c.release()
	}
}

// close releases the object now, or when the last call ends.
func (c *calls) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	if c.closed = true; c.running > 0 {
		return nil
	}
	return c.release()
}

// await runs one call of the libvirt library, which has no deadlines, and returns when ctx
// ends. The call itself continues until the daemon answers or this process ends, and what it
// uses, if not nil, stays until then.
func await[T any](ctx context.Context, uses *calls, what string, call func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	if uses != nil {
		if err := uses.begin(); err != nil {
			return none, fmt.Errorf("%s: %w", what, err)
		}
	}
	answers, givenUp := make(chan answer), make(chan struct{})
	go func() {
		v, err := call()
		if uses != nil {
			uses.end()
		}
		select {
		case answers <- answer{v, err}:
		case <-givenUp:
			if err == nil {
				_ = discard(v)
			}
		}
	}()
	select {
	case a := <-answers:
		if a.err != nil {
			return none, fmt.Errorf("%s: %w", what, clean(a.err))
		}
		return a.value, nil
	case <-ctx.Done():
		close(givenUp)
		return none, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// discard releases the result of a call.
func discard(result any) error {
	switch r := result.(type) {
	case *libvirt.Connect:
		_, err := r.Close()
		return err
	case *libvirt.Domain:
		return r.Free()
	case []*Domain:
		for _, d := range r {
			d.Free()
		}
	case *subscription:
		r.stop()
	}
	return nil
}

// awaitDone is [await] for calls that return only an error.
func awaitDone(ctx context.Context, uses *calls, what string, call func() error) error {
	_, err := await(ctx, uses, what, func() (struct{}, error) { return struct{}{}, call() })
	return err
}
