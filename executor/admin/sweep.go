package admin

import (
	"context"
	"errors"
	"time"

	"gitlab-sardine-executor/executor"
	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/sweep"
)

// sweepTimeout bounds a whole sweep.
const sweepTimeout = 10 * time.Minute

// Sweep removes machines and files that no job owns any more, as each prepare does, and
// addresses that no machine has; see [sweep.Run]. With all it removes the machines of running jobs too; with dryRun
// nothing. It counts what it removed in the file of metrics.
func Sweep(ctx context.Context, settings *config.Settings, all, dryRun bool) ([]sweep.Swept, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	host, err := executor.OpenHost(ctx, settings)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	var counted metrics.Changes
	swept, err := sweep.Run(ctx, host, dirs, sweep.Options{
		All: all, DryRun: dryRun, Addresses: true, Now: time.Now(), Metrics: &counted,
	})
	return swept, errors.Join(err, counted.Write(settings.Defaults.MetricsTextfile))
}
