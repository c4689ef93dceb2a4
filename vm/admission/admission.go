// Package admission has machines wait until the host has room for them.
package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/gofrs/flock"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// pollInterval is how often a machine that waits for room looks again.
	pollInterval = time.Second
	// turnPause is how long a machine waits for another that looks for room before it
	// says so.
	turnPause = 200 * time.Millisecond
	// holdersShown is how many of the machines in the way are named.
	holdersShown = 5
)

// ErrQueue: the host had no room for the machine in time.
var ErrQueue = errors.New("no room on this host")

// A Policy says how many machines a host takes at once. The zero value takes as
// many as come.
type Policy struct {
	// Slots is the number of machines of jobs; 0 means any number.
	Slots uint
	// Reserve is the memory, in bytes, that the host keeps for itself: the memory of
	// all running domains, the new one's and Reserve together must not be more than
	// the host has. Negative: memory is not counted.
	Reserve int64
	// Timeout is how long a machine waits for room.
	Timeout time.Duration
	// Waiting is called with a sentence when the machine has to wait, and whenever
	// the reason changes.
	Waiting func(reason string)
}

// Admit waits until the host has room for a machine that needs so much memory, in bytes.
// It returns with a lock in dir that keeps other machines from being admitted until this
// one runs and is counted: call release then.
func (a Policy) Admit(ctx context.Context, h *virt.Host, need uint64, dir string) (release func() error, err error) {
	if a.Slots == 0 && a.Reserve < 0 {
		return func() error { return nil }, nil
	}
	size, err := h.Size(ctx)
	if err != nil {
		return nil, err
	}
	if a.Reserve >= 0 && need+uint64(a.Reserve) > size.Memory {
		return nil, fmt.Errorf("%w: it needs %s of memory, and the host has %s, of which it keeps %s (host_reserve) for itself", errdefs.ErrInvalid,
			units.BytesSize(float64(need)), units.BytesSize(float64(size.Memory)), units.BytesSize(float64(a.Reserve)))
	}
	if a.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.Timeout)
		defer cancel()
	}
	q := &queue{h: h, a: a, need: need, size: size, lock: flock.New(filepath.Join(dir, ".admission"))}
	if err := q.wait(ctx); err != nil {
		return nil, queueError(ctx, q.said, err)
	}
	return q.lock.Close, nil
}

// A queue is one machine's wait for room. Its lock, which a process that dies gives
// up, is held by the one machine that looks for room, until it has found it and
// libvirt counts it: were it given up between two looks, a large machine would wait as
// long as small ones come and go.
type queue struct {
	h    *virt.Host
	a    Policy
	need uint64
	size virt.HostSize
	lock *flock.Flock
	said string // why it waits, as it was said last
}

// wait returns with the lock.
func (q *queue) wait(ctx context.Context) error {
	if err := q.takeTurn(ctx); err != nil {
		return err
	}
	for {
		reason, err := noRoom(ctx, q.h, q.a, q.need, q.size)
		if err == nil && reason == "" {
			return nil
		}
		if err != nil {
			return errors.Join(err, q.lock.Close())
		}
		q.say(reason)
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), q.lock.Close())
		}
	}
}

// takeTurn waits until no machine that came before looks for room any more. The
// kernel gives the lock to those who wait for it in their order, more or less; who
// tried it again and again, and asked libvirt in between, could miss its turn for
// minutes on a busy host.
func (q *queue) takeTurn(ctx context.Context) error {
	got := make(chan error, 1)
	go func() { got <- q.lock.Lock() }()
	// A wait for a lock cannot be called off: the turn is given to the next.
	leave := func() {
		if <-got == nil {
			q.lock.Close()
		}
	}
	for pause := turnPause; ; pause = pollInterval { // at first the other has just begun
		select {
		case err := <-got:
			return err
		case <-time.After(pause):
		case <-ctx.Done():
			go leave()
			return context.Cause(ctx)
		}
		reason, err := noRoom(ctx, q.h, q.a, q.need, q.size)
		if err != nil {
			go leave()
			return err
		}
		q.say(cmp.Or(reason, "a machine that came before this one waits for room"))
	}
}

// say says why the machine waits, unless it was said.
func (q *queue) say(reason string) {
	if reason != q.said && q.a.Waiting != nil {
		q.a.Waiting(reason)
	}
	q.said = reason
}

// queueError says what a machine waited for in vain.
func queueError(ctx context.Context, reason string, err error) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && reason != "" {
		return fmt.Errorf("%w in time (queue_timeout): %s", ErrQueue, reason)
	}
	return fmt.Errorf("wait for room on this host: %w", err)
}

// noRoom says why there is no room for a machine that needs so much memory; empty
// if there is.
func noRoom(ctx context.Context, h *virt.Host, a Policy, need uint64, size virt.HostSize) (string, error) {
	machines, err := record.List(ctx, h)
	if err != nil {
		return "", err
	}
	if a.Slots > 0 && uint(len(machines)) >= a.Slots {
		return fmt.Sprintf("%d of %d machines run already: %s", len(machines), a.Slots, holders(machines)), nil
	}
	if a.Reserve < 0 {
		return "", nil
	}
	used, err := h.MemoryInUse(ctx)
	if err != nil {
		return "", err
	}
	if used+need+uint64(a.Reserve) > size.Memory {
		return fmt.Sprintf("%s of memory are needed, and of the host's %s machines have %s: %s",
			units.BytesSize(float64(need)), units.BytesSize(float64(size.Memory)), units.BytesSize(float64(used)), holders(machines)), nil
	}
	return "", nil
}

// holders names the jobs whose machines run.
func holders(machines []record.InstanceInfo) string {
	if len(machines) == 0 {
		return "none of a job"
	}
	var names []string
	for _, m := range machines[:min(len(machines), holdersShown)] {
		name := "job " + m.Record.Job
		if m.Record.Project != "" {
			name += " of " + m.Record.Project
		}
		names = append(names, name)
	}
	if more := len(machines) - holdersShown; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}
