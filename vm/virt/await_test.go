package virt

import (
	"context"
	"errors"
	"testing"
)

// What a call uses that was given up stays until it ends, and its result is released.
func TestCallThatIsGivenUp(t *testing.T) {
	released := make(chan struct{}, 2)
	host := &calls{release: func() error { released <- struct{}{}; return nil }}
	freed := make(chan struct{}, 2)
	result := &Domain{calls: calls{release: func() error { freed <- struct{}{}; return nil }}}
	begun, end := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	_, err := await(ctx, host, "list", func() ([]*Domain, error) {
		close(begun)
		<-end
		return []*Domain{result}, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := host.close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-released:
		t.Fatal("released while a call uses it")
	default:
	}
	if err := awaitDone(t.Context(), host, "ask", func() error { t.Error("called"); return nil }); !errors.Is(err, errClosed) {
		t.Errorf("a call after close: %v", err)
	}
	close(end)
	<-released
	<-freed
	if err := host.close(); err != nil || len(released) > 0 {
		t.Errorf("closed twice: %v, released again: %d", err, len(released))
	}
}

// A connection that is closed at once after its calls were given up does not take the process
// with it.
func TestCloseBesideACall(t *testing.T) {
	for range 500 {
		host, err := Open(t.Context(), "test:///default")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, _ = host.Domains(ctx)
		_, _ = host.Networks(ctx)
		if err := host.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
