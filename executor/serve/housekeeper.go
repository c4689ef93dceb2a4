package serve

import (
	"context"
	"errors"
	"sync"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/admin"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/gauges"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/oci/store"
)

const (
	// sweepTimeout bounds a sweep, and the gauges that follow it.
	sweepTimeout = 5 * time.Minute
	// pruneInterval is how often images and caches are removed.
	pruneInterval = time.Hour
)

// A Housekeeper sweeps and prunes, and counts what is on the host.
type Housekeeper struct {
	Env

	mu     sync.Mutex
	err    error // of the last sweep
	pruned time.Time
}

// Name is that of the component.
func (*Housekeeper) Name() string { return "housekeeping" }

// Health is the error of the last sweep.
func (k *Housekeeper) Health() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// Run sweeps at once, and then at each sweep_interval.
func (k *Housekeeper) Run(ctx context.Context) error {
	for {
		err := k.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.report(err)
		select {
		case <-time.After(time.Duration(k.Settings.Get().Serve.SweepInterval)):
		case <-k.Settings.Changed():
		case <-ctx.Done():
			return nil
		}
	}
}

// report logs a failure when it is another than before.
func (k *Housekeeper) report(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && (k.err == nil || k.err.Error() != err.Error()) {
		k.Log.Error("housekeeping failed", "error", err)
	}
	k.err = err
}

// once sweeps, prunes if it is time, and counts.
func (k *Housekeeper) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	settings := k.Settings.Get()
	swept, err := admin.Sweep(ctx, settings, false, false)
	for _, s := range swept {
		k.Log.Warn("swept a machine that no job owns", "swept", s.Machine, "reason", s.Reason)
	}
	if age := time.Duration(settings.Serve.PruneOlderThan); age > 0 && time.Since(k.pruned) >= pruneInterval {
		err = errors.Join(err, k.prune(ctx, settings, age))
		k.pruned = time.Now()
	}
	return errors.Join(err, k.count(ctx, settings))
}

func (k *Housekeeper) prune(ctx context.Context, settings *config.Settings, age time.Duration) error {
	o := admin.PruneOptions{OlderThan: age, KeepStorage: store.KeepNothing, Now: time.Now()}
	images, err := admin.PruneImages(ctx, settings, o)
	for _, image := range images {
		k.Log.Info("removed an image that no job used", "digest", image.Digest, "references", image.References)
	}
	caches, cachesErr := admin.PruneCaches(ctx, settings, o)
	for _, c := range caches {
		k.Log.Info("removed a cache that no job used", "cache", c.Name)
	}
	return errors.Join(err, cachesErr)
}

// count sets the gauges of the host.
func (k *Housekeeper) count(ctx context.Context, settings *config.Settings) error {
	dirs, err := settings.Dirs()
	if err != nil {
		return err
	}
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return err
	}
	defer host.Close()
	var counted metrics.Changes
	err = gauges.Update(ctx, host, dirs, &counted)
	k.Metrics.Add(&counted)
	return err
}
