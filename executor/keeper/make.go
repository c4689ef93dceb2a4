package keeper

import (
	"context"
	"errors"
	"io"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/policy"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/admission"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
)

// Delays after a machine could not be made. A failure doubles the delay; a host without room
// does not.
const (
	firstDelay = 10 * time.Second
	maxDelay   = 10 * time.Minute
	roomDelay  = 10 * time.Second
)

// expiryGrace is the time after which sweep removes an idle machine that is long past
// idle_time, even beside a serve.
const expiryGrace = time.Hour

// attempts are what is known of the attempts to make machines of one want.
type attempts struct {
	err   error // of the last one, unless the host had no room
	delay time.Duration
	next  time.Time
	// noRoom: the last one found no room.
	noRoom bool
}

// failed returns the state after a failure.
func (a attempts) failed(err error, now time.Time) attempts {
	if errors.Is(err, admission.ErrNoRoom) || errors.Is(err, executor.ErrEvicted) {
		return attempts{delay: a.delay, next: now.Add(roomDelay), noRoom: true}
	}
	delay := min(max(firstDelay, 2*a.delay), maxDelay)
	return attempts{err: err, delay: delay, next: now.Add(delay)}
}

// cannot reports whether no machine can be made for the want at the moment.
func (k *Keeper) cannot(w want) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.attempts[w.key()]
	return a.noRoom || a.err != nil
}

func (k *Keeper) isMaking(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, is := k.making[name]
	return is
}

// fill begins to make the machines that are missing, as many as may be made at once. They are
// made until ctx ends.
func (k *Keeper) fill(ctx context.Context, v *view, kept map[string]int) {
	k.forget(v.wants)
	k.setGauges(v.wants, kept)
	for _, w := range v.wants {
		o, err := k.options(ctx, v, w)
		if err != nil {
			if k.isDue(w) {
				k.end(ctx, w, "", err)
			}
			continue
		}
		for k.begin(w, kept[w.key()]) {
			o.Name = idle.NewName()
			k.start(ctx, v, w, o)
		}
		k.refresh(ctx, v, w, o)
	}
}

// setGauges shows what is wanted and ready. What is not wanted any more is 0: Prometheus would
// show the last value for ever.
func (k *Keeper) setGauges(all []want, kept map[string]int) {
	var gauges metrics.Changes
	set := func(w want, wanted, ready int) {
		gauges.Set("sardine_idle_wanted", float64(wanted), "match", w.match, "image", w.ref.String())
		gauges.Set("sardine_idle_ready", float64(ready), "match", w.match, "image", w.ref.String())
	}
	for _, w := range k.shown {
		set(w, 0, 0)
	}
	for _, w := range all {
		set(w, w.count, kept[w.key()])
	}
	k.shown = all
	k.Metrics.Add(&gauges)
}

// forget drops what is known of wants that are gone.
func (k *Keeper) forget(all []want) {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := make(map[string]bool)
	for _, w := range all {
		keys[w.key()] = true
	}
	for key := range k.attempts {
		if !keys[key] {
			delete(k.attempts, key)
		}
	}
}

// isDue reports whether the delay after the last failure is over.
func (k *Keeper) isDue(w want) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !time.Now().Before(k.attempts[w.key()].next)
}

// begin reports whether to make one more machine now.
func (k *Keeper) begin(w want, kept int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range k.making {
		if key == w.key() {
			kept++
		}
	}
	return kept < w.count && len(k.making) < makers && !time.Now().Before(k.attempts[w.key()].next)
}

// options are those for a new machine of the want.
func (k *Keeper) options(ctx context.Context, v *view, w want) (executor.FetchAndCloneOptions, error) {
	log := joblog.New(io.Discard)
	host, err := v.host.Size(ctx)
	if err != nil {
		return executor.FetchAndCloneOptions{}, err
	}
	size, err := policy.Policy{Settings: v.settings}.Size(w.settings, host.CPUs, log)
	if err != nil {
		return executor.FetchAndCloneOptions{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	return executor.FetchAndCloneOptions{
		Image:     w.ref,
		Pull:      executor.PullLimits(v.settings, w.settings, store.PullOptions{Policies: w.policies, Unused: true}),
		Dirs:      v.dirs,
		Settings:  w.settings,
		Size:      size,
		Admission: executor.AdmissionPolicy(v.settings),
		Record:    record.Record{Created: now, Expires: now.Add(2*w.limit + w.settings.Timeout + expiryGrace)},
		Version:   k.Version,
		Log:       log,
		Detail:    func(text string) { k.Log.Debug(text, "image", w.ref.String()) },
	}, nil
}

// start makes a machine in the background.
func (k *Keeper) start(ctx context.Context, v *view, w want, o executor.FetchAndCloneOptions) {
	k.mu.Lock()
	k.making[o.Name] = w.key()
	k.asked[w.key()] = time.Now()
	k.mu.Unlock()
	settings := v.settings
	k.makers.Go(func() error {
		began := time.Now()
		err := onHost(ctx, settings, func(host *virt.Host) error { return executor.MakeIdle(ctx, host, o) })
		if err == nil {
			k.count("sardine_idle_made_total", "match", w.match)
			k.Log.Info("an idle machine is ready", "machine", o.Name, "image", w.ref.String(), "seconds", time.Since(began).Seconds())
		}
		k.end(ctx, w, o.Name, err)
		return nil
	})
}

// onHost calls do with a connection of its own: a call of libvirt cannot be interrupted.
func onHost(ctx context.Context, s *config.Settings, do func(*virt.Host) error) error {
	host, err := executor.OpenHost(ctx, s)
	if err != nil {
		return err
	}
	defer host.Close()
	return do(host)
}

// end records how the attempt to make a machine ended.
func (k *Keeper) end(ctx context.Context, w want, name string, err error) {
	k.mu.Lock()
	delete(k.making, name)
	resting := len(k.making) == 0
	state := attempts{}
	if err != nil {
		state = k.attempts[w.key()].failed(err, time.Now())
	}
	k.attempts[w.key()] = state
	k.mu.Unlock()
	if resting {
		rest()
	}
	switch {
	case err == nil || ctx.Err() != nil:
	case state.noRoom:
		k.Log.Debug("no idle machine was made", "image", w.ref.String(), "reason", err)
	default:
		k.count("sardine_idle_failed_total", "match", w.match)
		k.Log.Warn("an idle machine could not be made", "image", w.ref.String(), "error", joblog.OneLine(err.Error()), "next", state.delay)
	}
	select {
	case k.made <- struct{}{}:
	default:
	}
}

// refresh asks the registry for the image in the background, if it is time. What is pulled
// changes the kind of the machines.
func (k *Keeper) refresh(ctx context.Context, v *view, w want, o executor.FetchAndCloneOptions) {
	k.mu.Lock()
	due := time.Since(k.asked[w.key()]) > refreshInterval && w.policies[0] == oci.PullAlways
	if due {
		k.asked[w.key()] = time.Now()
	}
	k.mu.Unlock()
	if !due {
		return
	}
	k.makers.Go(func() error {
		images, err := store.Open(v.dirs.Store)
		if err != nil {
			return nil // the next machine that is made reports it
		}
		image, err := images.Pull(ctx, w.ref, o.Pull)
		if err != nil {
			k.Log.Debug("the registry was not asked for a newer image", "image", w.ref.String(), "error", err)
			return nil
		}
		return image.Close()
	})
}
