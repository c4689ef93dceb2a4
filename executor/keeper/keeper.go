// Package keeper keeps idle machines ready for jobs: it makes, replaces and removes them.
package keeper

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/claim"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/serve"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/removal"
	"gitlab-sardine-executor/vm/virt"
)

const (
	// poll is how often the keeper looks whether a machine was taken: it reads one directory.
	poll = 500 * time.Millisecond
	// lookInterval is how often it asks libvirt in any case.
	lookInterval = 15 * time.Second
	// refreshInterval is how often it asks registries for new images.
	refreshInterval = 5 * time.Minute
	// libvirtTimeout bounds a look at the machines.
	libvirtTimeout = 30 * time.Second
	// removeTimeout bounds the removal of machines.
	removeTimeout = 30 * time.Second
	// makers is how many machines are made at once: jobs that boot have the rest of the host.
	makers = 2
)

// A Keeper keeps the idle machines of one host.
type Keeper struct {
	serve.Env

	mu       sync.Mutex
	err      error                // of the last look
	attempts map[string]attempts  // by key of the want
	making   map[string]string    // keys of wants, by the names of machines
	asked    map[string]time.Time // when the registry was asked, by key
	made     chan struct{}        // a machine was made, or not
	makers   errgroup.Group
	shown    []want // in the gauges
	host     *virt.Host
	settings *config.Settings // of the host connection
}

// New returns a keeper.
func New(env serve.Env) *Keeper {
	return &Keeper{
		Env: env, attempts: make(map[string]attempts), making: make(map[string]string), asked: make(map[string]time.Time), made: make(chan struct{}, 1),
	}
}

// Name is that of the component.
func (*Keeper) Name() string { return "idle machines" }

// Health is why machines are missing.
func (k *Keeper) Health() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := []error{k.err}
	for _, a := range k.attempts {
		errs = append(errs, a.err)
	}
	return errors.Join(errs...)
}

// Run keeps machines until ctx ends, and then removes them.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.disconnect()
	ticks := time.NewTicker(poll)
	defer ticks.Stop()
	var seen string
	var next time.Time
	for {
		if state := k.offers(); state != seen || !time.Now().Before(next) {
			k.report(k.look(ctx))
			seen, next = k.offers(), time.Now().Add(lookInterval)
		}
		select {
		case <-ticks.C:
		case <-k.made:
			next = time.Time{}
		case <-k.Settings.Changed():
			next = time.Time{}
		case <-ctx.Done():
			_ = k.makers.Wait()
			k.report(k.removeAll(context.WithoutCancel(ctx)))
			return nil
		}
	}
}

// report logs a failure when it is another than before.
func (k *Keeper) report(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && (k.err == nil || k.err.Error() != err.Error()) {
		k.Log.Error("idle machines cannot be looked after", "error", err)
	}
	k.err = err
}

// offers describes which machines are offered.
func (k *Keeper) offers() string {
	dirs, err := k.Settings.Get().Dirs()
	if err != nil {
		return ""
	}
	names, _ := idle.Offered(dirs.Jobs)
	text := ""
	for _, name := range names {
		text += name + "\n"
	}
	return text
}

// A view is what the keeper sees at one time.
type view struct {
	settings *config.Settings
	dirs     config.Dirs
	host     *virt.Host
	wants    []want
	// ready are the machines that jobs may take, and waiting all idle domains.
	ready   []claim.Machine
	waiting map[string]bool
	// making are the machines that were being made before the others were looked for.
	making map[string]string
}

// look compares the machines with what is wanted, removes some, and begins to make others.
func (k *Keeper) look(ctx context.Context) error {
	looking, cancel := context.WithTimeout(ctx, libvirtTimeout)
	defer cancel()
	v, err := k.view(looking)
	if v == nil || err != nil {
		return err
	}
	kept, err := k.sort(looking, v)
	k.fill(ctx, v, kept)
	return err
}

// view collects what [Keeper.look] needs; nil if there is nothing to do.
func (k *Keeper) view(ctx context.Context) (*view, error) {
	v := &view{settings: k.Settings.Get(), waiting: make(map[string]bool)}
	var err error
	if v.dirs, err = v.settings.Dirs(); err != nil {
		return nil, err
	}
	if v.wants, err = wants(ctx, v.settings, func(ctx context.Context) ([]store.StoredImage, error) {
		images, err := store.Open(v.dirs.Store)
		if err != nil {
			return nil, err
		}
		return images.Inventory(ctx)
	}); err != nil {
		return nil, err
	}
	if len(v.wants) > 0 {
		err = idle.Touch(v.dirs.Jobs)
	}
	if err != nil || !idle.Used(v.dirs.Jobs) {
		return nil, err
	}
	if v.host, err = k.connect(ctx, v.settings); err != nil {
		return nil, err
	}
	k.mu.Lock()
	v.making = maps.Clone(k.making)
	k.mu.Unlock()
	// Ready before waiting: a machine that a job takes in between is in neither.
	if v.ready, err = claim.Ready(v.dirs.Jobs, ""); err != nil {
		return nil, err
	}
	machines, err := record.List(ctx, v.host)
	if err != nil {
		k.disconnect()
		return nil, err
	}
	for _, m := range machines {
		v.waiting[m.Name] = m.Record.Idle
	}
	return v, nil
}

// connect returns the connection to libvirt, which is kept. A connection of other settings is
// replaced.
func (k *Keeper) connect(ctx context.Context, s *config.Settings) (*virt.Host, error) {
	if k.host != nil && k.settings.Defaults.Connect == s.Defaults.Connect {
		return k.host, nil
	}
	k.disconnect()
	host, err := executor.OpenHost(ctx, s)
	if err != nil {
		return nil, err
	}
	k.host, k.settings = host, s
	return host, nil
}

func (k *Keeper) disconnect() {
	if k.host != nil {
		k.host.Close()
	}
	k.host = nil
}

// sort removes the machines that are not wanted, and returns the number of good ones by the
// key of their want. Machines that are too old do not count, and stay until others have
// replaced them, or cannot.
func (k *Keeper) sort(ctx context.Context, v *view) (kept map[string]int, err error) {
	kept = make(map[string]int)
	kinds := k.kinds(ctx, v)
	var going removals
	old := make(map[string][]string)
	offered := make(map[string]bool)
	for _, m := range v.ready {
		offered[m.Domain] = true
		w, ok := kinds[m.Kind]
		switch {
		case !v.waiting[m.Domain]:
			going.add(m.Domain, "gone")
		case !ok:
			going.add(m.Domain, "changed")
		case time.Since(m.Made) > w.limit:
			old[w.key()] = append(old[w.key()], m.Domain)
		case kept[w.key()] == w.count:
			going.add(m.Domain, "surplus")
		default:
			kept[w.key()]++
		}
	}
	for _, w := range v.wants {
		if kept[w.key()] == w.count || k.cannot(w) {
			for _, name := range old[w.key()] {
				going.add(name, "old")
			}
		}
	}
	for name, waits := range v.waiting {
		if waits && !offered[name] && v.making[name] == "" && !k.isMaking(name) {
			going.add(name, "abandoned") // or a job is just taking it, and has its lock
		}
	}
	return kept, k.remove(ctx, v, going)
}

// kinds are the wants by the kinds of their machines. A want with an image that the store does
// not have yet has none.
func (k *Keeper) kinds(ctx context.Context, v *view) map[string]want {
	kinds := make(map[string]want)
	for _, w := range v.wants {
		o, err := k.options(ctx, v, w)
		if err != nil {
			continue // make reports it
		}
		if kind, err := o.KindOf(v.host); err == nil {
			kinds[kind] = w
		}
	}
	return kinds
}

// removals are machines to remove, with reasons.
type removals struct{ names, reasons []string }

func (r *removals) add(name, reason string) {
	r.names, r.reasons = append(r.names, name), append(r.reasons, reason)
}

// remove removes machines that are still idle.
func (k *Keeper) remove(ctx context.Context, v *view, going removals) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	var group errgroup.Group
	for i, name := range going.names {
		group.Go(func() error {
			removed, err := removal.Idle(ctx, v.host, name, vm.Place{OverlayDir: v.dirs.Overlays, JobDir: v.dirs.Job(name)})
			if removed {
				k.count("sardine_idle_removed_total", "reason", going.reasons[i])
				k.Log.Info("removed an idle machine", "machine", name, "reason", going.reasons[i])
			}
			return err
		})
	}
	return group.Wait()
}

// removeAll removes all idle machines when the service ends.
func (k *Keeper) removeAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	v, err := k.view(ctx)
	if v == nil || err != nil {
		return err
	}
	var going removals
	for name, waits := range v.waiting {
		if waits {
			going.add(name, "stop")
		}
	}
	return k.remove(ctx, v, going)
}

func (k *Keeper) count(name string, labels ...string) {
	var m metrics.Changes
	m.Count(name, 1, labels...)
	k.Metrics.Add(&m)
}
