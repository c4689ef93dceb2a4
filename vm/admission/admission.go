// Package admission makes machines wait until the host has room for them.
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
	// pollInterval is how often a waiting machine checks for room.
	pollInterval = time.Second
	// turnPause is how long a machine waits for its turn before it reports that.
	turnPause = 200 * time.Millisecond
	// holdersShown is the number of running machines that a message names.
	holdersShown = 5
)

// errNoRoom: the host had no room for the machine within the timeout.
var errNoRoom = errors.New("no room on this host")

// A Policy limits the number of machines on a host. The zero value has no limit but the
// memory of the host.
type Policy struct {
	// Slots is the maximum number of machines of jobs; 0 means no limit.
	Slots uint
	// Reserve is the memory, in bytes, that the host keeps for itself. The memory of all
	// running domains, of the new one and Reserve must fit into the host. If Reserve is
	// negative, memory is not counted.
	Reserve int64
	// Timeout is how long a machine waits for room.
	Timeout time.Duration
	// Waiting is called with the reason when the machine must wait, and when the reason
	// changes.
	Waiting func(reason string)
}

// Admit waits until the host has room for a machine that needs that much memory, in bytes.
// It returns with a lock in dir, which prevents other admissions. Call release when the
// machine runs, and so is counted.
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

// A queue is the wait of one machine for room. One machine at a time holds the lock, from
// its first check until it runs and libvirt counts it. If it released the lock between
// checks, a large machine would wait as long as small ones come and go. The kernel
// releases the lock of a process that dies.
type queue struct {
	h    *virt.Host
	a    Policy
	need uint64
	size virt.HostSize
	lock *flock.Flock
	said string // the last reason that was reported
}

// wait returns when it holds the lock and there is room.
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

// takeTurn waits for the lock. The kernel gives it to waiting processes roughly in order. A
// process that polled the lock, and asked libvirt in between, could miss its turn for
// minutes on a busy host.
func (q *queue) takeTurn(ctx context.Context) error {
	got := make(chan error, 1)
	go func() { got <- q.lock.Lock() }()
	// Waiting for the lock cannot be cancelled: release it when it comes.
	leave := func() {
		if <-got == nil {
			q.lock.Close()
		}
	}
	for pause := turnPause; ; pause = pollInterval { // the other machine may be about to start
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
		q.say(cmp.Or(reason, "a machine that came earlier waits for room"))
	}
}

// say reports why the machine waits, unless it was reported already.
func (q *queue) say(reason string) {
	if reason != q.said && q.a.Waiting != nil {
		q.a.Waiting(reason)
	}
	q.said = reason
}

// queueError describes what the machine waited for.
func queueError(ctx context.Context, reason string, err error) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) && reason != "" {
		return fmt.Errorf("%w in time (queue_timeout): %s", errNoRoom, reason)
	}
	return fmt.Errorf("wait for room on this host: %w", err)
}

// noRoom describes why there is no room for a machine that needs that much memory; empty if
// there is.
func noRoom(ctx context.Context, h *virt.Host, a Policy, need uint64, size virt.HostSize) (string, error) {
	machines, err := record.List(ctx, h)
	if err != nil {
		return "", err
	}
	if a.Slots > 0 && uint(len(machines)) >= a.Slots {
		return fmt.Sprintf("%d of %d machines are running: %s", len(machines), a.Slots, holders(machines)), nil
	}
	if a.Reserve < 0 {
		return "", nil
	}
	used, err := h.MemoryInUse(ctx)
	if err != nil {
		return "", err
	}
	if used+need+uint64(a.Reserve) > size.Memory {
		return fmt.Sprintf("%s of memory are needed, and of the host's %s, running machines use %s: %s",
			units.BytesSize(float64(need)), units.BytesSize(float64(size.Memory)), units.BytesSize(float64(used)), holders(machines)), nil
	}
	return "", nil
}

// holders lists the jobs that have the running machines.
func holders(machines []record.InstanceInfo) string {
	if len(machines) == 0 {
		return "none is a job's"
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
