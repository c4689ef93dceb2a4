// Package admission makes machines wait until the host has room for them.
package admission

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	// turnPause is how long a machine waits for its turn before it looks why.
	turnPause = 200 * time.Millisecond
)

const (
	// lockFile is locked by the first machine in the queue. It is empty unless that machine
	// waits for room.
	lockFile = ".admission"
	// reservationDir is the directory of the reservations.
	reservationDir = ".admitted"
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
	// changes. The reason is for the log of a job: it names no other job.
	Waiting func(reason string)
}

// Admit waits until the host has room for the machine of that name, which needs that much
// memory, in bytes, and reserves the room: admissions of other machines count it from now
// on. Call release when the machine runs, and so is counted by libvirt, or when its start
// has failed. The reservation of a process that dies ends with it. The state of the
// admissions is in dir.
func (a Policy) Admit(ctx context.Context, h *virt.Host, name string, need uint64, dir string) (release func() error, err error) {
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
	path := filepath.Join(dir, lockFile)
	q := &queue{h: h, a: a, name: name, need: need, size: size, lock: flock.New(path), reservations: reservations(filepath.Join(dir, reservationDir))}
	reserved, err := q.wait(ctx)
	if err != nil {
		return nil, queueError(ctx, q.said, err)
	}
	return reserved.release, nil
}

// A queue is the wait of one machine for room. One machine at a time holds the lock: the
// first one in the queue, until it has reserved its room. If it released the lock between
// checks, a large machine would wait as long as small ones come and go. The kernel
// releases the lock of a process that dies.
//
// libvirt is asked before the lock is taken: while it starts a machine, it can take long to
// list it. With the lock held, only files are read, unless there is no room.
type queue struct {
	h            *virt.Host
	a            Policy
	name         string
	need         uint64
	size         virt.HostSize
	lock         *flock.Flock
	reservations reservations
	said         string // the last reason that was reported
}

// wait returns when room is reserved.
func (q *queue) wait(ctx context.Context) (_ *reservation, err error) {
	now, err := q.look(ctx)
	if err != nil {
		return nil, err
	}
	if now, err = q.takeTurn(ctx, now); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.blocks(false), q.lock.Close()) }()
	for asked := false; ; asked = true {
		reason, err := q.noRoom(now)
		if err != nil {
			return nil, err
		}
		if reason == "" && now.isRecent() {
			return q.reservations.add(q.name, q.need)
		}
		if reason != "" && asked {
			if err := q.blocks(true); err != nil {
				return nil, err
			}
			q.say(reason)
			select {
			case <-time.After(pollInterval):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		// Machines may have ended since libvirt was asked.
		if now, err = q.look(ctx); err != nil {
			return nil, err
		}
	}
}

// takeTurn waits for the lock. The kernel gives it to waiting processes roughly in order. A
// process that polled the lock, and asked libvirt in between, could miss its turn for
// minutes on a busy host. It returns the latest observation.
func (q *queue) takeTurn(ctx context.Context, now observation) (observation, error) {
	got := make(chan error, 1)
	go func() { got <- q.lock.Lock() }()
	// Waiting for the lock cannot be cancelled: release it when it comes.
	leave := func() {
		if <-got == nil {
			q.lock.Close()
		}
	}
	for pause := turnPause; ; pause = pollInterval {
		select {
		case err := <-got:
			if err == nil { // a process may have died
				err = q.blocks(false)
			}
			return now, err
		case <-time.After(pause):
		case <-ctx.Done():
			go leave()
			return now, context.Cause(ctx)
		}
		if !q.blocked() {
			continue // the first in the queue is about to start
		}
		var reason string
		latest, err := q.look(ctx)
		if err == nil {
			now = latest
			reason, err = q.noRoom(now)
		}
		if err != nil {
			go leave()
			return now, err
		}
		q.say(cmp.Or(reason, "a machine that came earlier waits for room"))
	}
}

// blocks writes to the lock file whether the first machine in the queue waits for room. The
// caller holds the lock.
func (q *queue) blocks(waits bool) error {
	if waits == q.blocked() {
		return nil
	}
	text := ""
	if waits {
		text = q.name + "\n"
	}
	if err := os.WriteFile(q.lock.Path(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("wait for room on this host: %w", err)
	}
	return nil
}

// blocked reports whether the first machine in the queue waits for room.
func (q *queue) blocked() bool {
	info, err := os.Stat(q.lock.Path())
	return err == nil && info.Size() > 0
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

// An observation is what libvirt knew at a time.
type observation struct {
	at       uint64 // when it was asked: see uptime
	machines []record.InstanceInfo
	domains  map[string]uint64 // memory of all running domains, in bytes, by name
}

// isRecent reports whether all reservations that the observation may lack still have files.
func (o observation) isRecent() bool {
	now, err := uptime()
	return err == nil && now-o.at < uint64(releasedMax/2)
}

// look asks libvirt for what the policy counts.
func (q *queue) look(ctx context.Context) (now observation, err error) {
	if now.at, err = uptime(); err != nil {
		return now, err
	}
	if now.machines, err = record.List(ctx, q.h); err == nil && q.a.Reserve >= 0 {
		now.domains, err = q.h.Memories(ctx)
	}
	return now, err
}

// noRoom describes why there is no room for the machine; empty if there is. Machines that
// are starting are counted by their reservations.
func (q *queue) noRoom(now observation) (string, error) {
	starting, err := q.reservations.since(now.at)
	if err != nil {
		return "", err
	}
	delete(starting, q.name) // of an earlier attempt
	count, used := len(now.machines), uint64(0)
	for _, m := range now.machines {
		delete(starting, m.Name)
	}
	for name, memory := range now.domains {
		used += memory
		delete(starting, name)
	}
	for _, memory := range starting {
		used += memory
	}
	count += len(starting)
	if q.a.Slots > 0 && uint(count) >= q.a.Slots {
		return fmt.Sprintf("%d of %d machines are running", count, q.a.Slots), nil
	}
	if q.a.Reserve >= 0 && used+q.need+uint64(q.a.Reserve) > q.size.Memory {
		return fmt.Sprintf("%s of memory are needed, and of the host's %s, running machines use %s",
			units.BytesSize(float64(q.need)), units.BytesSize(float64(q.size.Memory)), units.BytesSize(float64(used))), nil
	}
	return "", nil
}
