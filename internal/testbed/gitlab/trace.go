package gitlab

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
)

// A Trace is a job log that grows.
type Trace struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed, and made anew, with each change
	mask    *strings.Replacer
}

// newTrace makes one that shows none of the secrets.
func newTrace(secrets ...string) *Trace {
	var pairs []string
	for _, secret := range secrets {
		pairs = append(pairs, secret, "[MASKED]")
	}
	return &Trace{changed: make(chan struct{}), mask: strings.NewReplacer(pairs...)}
}

// Write appends.
func (t *Trace) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
	return t.text.Write(p)
}

// String is the log so far.
func (t *Trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mask.Replace(t.text.String())
}

// WaitFor waits until text stands in the log.
func (t *Trace) WaitFor(ctx context.Context, text string) error {
	for {
		t.mu.Lock()
		found, changed := strings.Contains(t.mask.Replace(t.text.String()), text), t.changed
		t.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for %q in the job log: %w; it says:\n%s", text, ctx.Err(), t)
		}
	}
}
