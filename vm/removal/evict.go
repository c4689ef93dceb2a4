package removal

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/internal/dirlock"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/place"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// Evict removes idle machines, those first that are not ready yet, then the oldest, until
// those that are gone had that memory, in bytes, together. Machines that a job is taking stay.
// at is the place of any machine of this host.
func Evict(ctx context.Context, h *virt.Host, at place.Place, memory uint64) error {
	names, err := evictable(ctx, h, at)
	if err != nil {
		return err
	}
	memories, err := h.Memories(ctx)
	if err != nil {
		return err
	}
	// libvirt takes long to destroy a domain, and can destroy several at once.
	var going errgroup.Group
	for freed := uint64(0); len(names) > 0 && freed < memory; names = names[1:] {
		name := names[0]
		locked, err := dirlock.Try(at.Of(name).JobDir)
		if locked == nil || err != nil {
			continue // a job is taking it, or it is being removed
		}
		freed += memories[name]
		going.Go(func() error {
			defer locked.Unlock()
			_, err := evictOne(ctx, h, name, at.Of(name))
			return err
		})
	}
	return going.Wait()
}

// evictable returns the idle machines in the order of their eviction.
func evictable(ctx context.Context, h *virt.Host, at place.Place) ([]string, error) {
	machines, err := record.List(ctx, h)
	if err != nil {
		return nil, err
	}
	waits := make(map[string]bool)
	for _, m := range machines {
		if m.Record.Idle {
			waits[m.Name] = true
		}
	}
	offered, err := idle.Offered(at.Storage())
	if err != nil {
		return nil, err
	}
	var ready, names []string
	for _, name := range offered {
		if waits[name] {
			ready = append(ready, name)
			delete(waits, name)
		}
	}
	for name := range waits {
		names = append(names, name)
	}
	return append(names, ready...), nil
}

// evictOne removes a machine, if it is still idle or its domain is gone. The caller holds its
// lock.
func evictOne(ctx context.Context, h *virt.Host, name string, at place.Place) (removed bool, err error) {
	dom, err := h.Domain(ctx, name)
	if err == nil {
		var found record.Record
		found, err = record.Read(ctx, dom)
		dom.Free()
		if err == nil && !found.Idle || errors.Is(err, errdefs.ErrNotOurs) {
			return false, nil
		}
	}
	if err != nil && !errors.Is(err, errdefs.ErrNoDomain) {
		return false, err
	}
	return true, Locked(ctx, h, name, at)
}

// Idle removes the machine if it is still idle, and no job is taking it. It reports whether it
// did.
func Idle(ctx context.Context, h *virt.Host, name string, at place.Place) (removed bool, err error) {
	locked, err := dirlock.Acquire(ctx, at.JobDir, removeLockTimeout)
	if locked == nil || err != nil {
		return false, err
	}
	defer locked.Unlock()
	return evictOne(ctx, h, name, at)
}
