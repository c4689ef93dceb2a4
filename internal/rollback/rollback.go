// Package rollback undoes what was begun and did not succeed.
package rollback

import (
	"context"
	"errors"
	"time"
)

// Undoing is bounded by timeout; by hurriedTimeout if the caller's context has ended, for
// then it may have two seconds left in all.
const (
	timeout        = 30 * time.Second
	hurriedTimeout = 1500 * time.Millisecond
)

// Context is the context for undoing what was begun under ctx.
func Context(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := timeout
	if ctx.Err() != nil {
		limit = hurriedTimeout
	}
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// A Stack holds the steps that undo what was done.
type Stack struct{ steps []func() error }

// Add adds a step.
func (s *Stack) Add(step func() error) { s.steps = append(s.steps, step) }

// Run runs all steps, the last first.
func (s *Stack) Run() error {
	var failed []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		failed = append(failed, s.steps[i]())
	}
	return errors.Join(failed...)
}
