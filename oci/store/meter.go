package store

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/transport"
)

// A meter is an [oci.Progress] that measures a pull.
type meter struct {
	oci.Progress
	received, total atomic.Int64 // bytes
	awaited         atomic.Int64 // requests and transfers in progress
	// known receives a value when the total is known.
	known chan struct{}
}

func (m *meter) state(beat int64) turnState {
	return turnState{Received: m.received.Load(), Total: m.total.Load(), Local: m.awaited.Load() == 0, Beat: beat}
}

// Expect adds to the total.
func (m *meter) Expect(size int64) {
	m.total.Add(size)
	select {
	case m.known <- struct{}{}:
	default:
	}
	oci.Expect(m.Progress, size)
}

// Start counts a transfer.
func (m *meter) Start(name string, size int64) oci.Transfer {
	m.awaited.Add(1)
	return &meteredTransfer{m.Progress.Start(name, size), m}
}

type meteredTransfer struct {
	oci.Transfer
	m *meter
}

func (t *meteredTransfer) Add(n int64) {
	t.m.received.Add(n)
	t.Transfer.Add(n)
}

func (t *meteredTransfer) Done(err error) {
	t.m.awaited.Add(-1)
	t.Transfer.Done(err)
}

// A meteredSource counts requests in progress.
type meteredSource struct {
	transport.Source
	m *meter
}

func (s meteredSource) Manifest(ctx context.Context, d digest.Digest) ([]byte, string, error) {
	s.m.awaited.Add(1)
	defer s.m.awaited.Add(-1)
	return s.Source.Manifest(ctx, d)
}

func (s meteredSource) Blob(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	s.m.awaited.Add(1)
	defer s.m.awaited.Add(-1)
	return s.Source.Blob(ctx, desc)
}
