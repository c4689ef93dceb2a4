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
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// pollInterval is how often a waiting machine checks for room.
	pollInterval = time.Second
	// evictPause is the same after idle machines were told to go.
	evictPause = 50 * time.Millisecond
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

// ErrNoRoom: the host had no room for the machine within the timeout, or for an idle machine
// now.
var ErrNoRoom = errors.New("no room on this host")

// A Policy limits the number of machines on a host. The zero value has no limit but the
// memory of the host.
//
// Idle machines count as nothing: they give way to machines of jobs.
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
	// Evict ends idle machines that have at least that memory, in bytes, together, or all that
	// it can end now. If it is nil, their memory is not needed: the new machine is one of them.
	Evict func(ctx context.Context, memory uint64) error
	// Idle: the new machine is for no job yet. It does not wait: it gets only what neither
	// machines of jobs nor idle ones use, and nothing while a job waits.
	Idle bool
}

// Most returns the memory, in bytes, that one machine can have on a host of that much: all but
// Reserve.
func (a Policy) Most(memory uint64) uint64 {
	if reserve := uint64(max(a.Reserve, 0)); reserve < memory {
		return memory - reserve
	}
	return memory // no machine fits: Admit says so
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
	if a.Idle {
		reserved, err := q.admitIdle(ctx)
		if err != nil {
			return nil, err
		}
		return reserved.release, nil
	}
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
		reason, surplus, err := q.noRoom(now)
		if err != nil {
			return nil, err
		}
		if reason == "" && surplus == 0 && now.isRecent() {
			return q.reservations.add(q.name, q.need)
		}
		if err := q.makeRoom(ctx, reason, surplus, asked); err != nil {
			return nil, err
		}
		// Machines may have ended since libvirt was asked.
		if now, err = q.look(ctx); err != nil {
			return nil, err
		}
	}
}

// makeRoom evicts idle machines if only they are in the way, and waits otherwise. asked: the
// reason is not that libvirt was asked long ago.
func (q *queue) makeRoom(ctx context.Context, reason string, surplus uint64, asked bool) error {
	pause := time.Duration(0)
	switch {
	case !asked:
	case reason != "":
		if err := q.blocks(true); err != nil {
			return err
		}
		q.say(reason)
		pause = pollInterval
	case surplus > 0:
		if err := q.a.Evict(ctx, surplus); err != nil {
			return err
		}
		pause = evictPause // one may just be starting, or be given to a job
	}
	if pause == 0 {
		return nil
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admitIdle reserves room for an idle machine, if there is room now.
func (q *queue) admitIdle(ctx context.Context) (_ *reservation, err error) {
	now, err := q.look(ctx)
	if err != nil {
		return nil, err
	}
	got, err := q.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("look for room on this host: %w", err)
	}
	if !got {
		return nil, fmt.Errorf("%w for an idle machine: a job's machine starts or waits", ErrNoRoom)
	}
	defer func() { err = errors.Join(err, q.lock.Close()) }()
	starting, err := q.reservations.since(now.at)
	if err != nil {
		return nil, err
	}
	u := now.usage(starting)
	if used := u.memory + u.idle; q.a.Reserve >= 0 && used+q.need+uint64(q.a.Reserve) > q.size.Memory {
		return nil, fmt.Errorf("%w for an idle machine: %s", ErrNoRoom, q.lack(used))
	}
	return q.reservations.add(q.name, q.need)
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
			reason, _, err = q.noRoom(now)
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
		return fmt.Errorf("%w in time (queue_timeout): %s", ErrNoRoom, reason)
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

// usage is what machines take.
type usage struct {
	count  int    // of machines of jobs
	memory uint64 // of all domains but idle machines, in bytes
	idle   uint64 // memory of idle machines, in bytes
}

// usage adds up what was observed, and the memory of machines that are starting, by name. It
// removes from starting what libvirt knows.
func (o observation) usage(starting map[string]uint64) (u usage) {
	waits := make(map[string]bool) // for a job, by the name of the domain
	for _, m := range o.machines {
		// A machine that a job took is reserved by the name that the job gave it.
		delete(starting, m.Name)
		delete(starting, m.MachineName())
		if m.Record.Idle {
			waits[m.Name] = true
		} else {
			u.count++
		}
	}
	for name, memory := range o.domains {
		delete(starting, name)
		if waits[name] {
			u.idle += memory
		} else {
			u.memory += memory
		}
	}
	for name, memory := range starting {
		if idle.IsName(name) {
			u.idle += memory
		} else {
			u.memory += memory
			u.count++
		}
	}
	return u
}

// noRoom describes why there is no room for the machine; empty if there is, once idle
// machines with the memory surplus, in bytes, are gone. Machines that are starting are counted
// by their reservations.
func (q *queue) noRoom(now observation) (reason string, surplus uint64, err error) {
	starting, err := q.reservations.since(now.at)
	if err != nil {
		return "", 0, err
	}
	delete(starting, q.name) // of an earlier attempt
	u := now.usage(starting)
	if q.a.Slots > 0 && uint(u.count) >= q.a.Slots {
		return fmt.Sprintf("%d of %d machines are running", u.count, q.a.Slots), 0, nil
	}
	if q.a.Reserve < 0 {
		return "", 0, nil
	}
	need := q.need + uint64(q.a.Reserve)
	if u.memory+need > q.size.Memory {
		return q.lack(u.memory), 0, nil
	}
	if all := u.memory + u.idle + need; q.a.Evict != nil && all > q.size.Memory {
		surplus = min(u.idle, all-q.size.Memory)
	}
	return "", surplus, nil
}

// lack says that the memory, of which used is in use, does not suffice.
func (q *queue) lack(used uint64) string {
	return fmt.Sprintf("%s of memory are needed, and of the host's %s, running machines use %s",
		units.BytesSize(float64(q.need)), units.BytesSize(float64(q.size.Memory)), units.BytesSize(float64(used)))
}
