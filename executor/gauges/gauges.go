// Package gauges counts what is on a host: machines, images, caches and snapshots.
package gauges

import (
	"context"
	"errors"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/oci/store"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/virt"
)

// Update sets the gauges of the host that it can find out, and returns the errors of
// the others.
func Update(ctx context.Context, host *virt.Host, dirs config.Dirs, gauges *metrics.Changes) error {
	return errors.Join(machineGauges(ctx, host, gauges), imageGauges(ctx, dirs, gauges), cacheGauges(dirs, gauges), snapshotGauges(dirs, gauges))
}

// machineGauges counts machines of jobs, and those that wait for one.
func machineGauges(ctx context.Context, host *virt.Host, gauges *metrics.Changes) error {
	machines, err := record.List(ctx, host)
	if err != nil {
		return err
	}
	jobs, waiting := 0, 0
	for _, m := range machines {
		if m.Record.Idle {
			waiting++
		} else {
			jobs++
		}
	}
	gauges.Set("sardine_machines", float64(jobs))
	gauges.Set("sardine_idle_machines", float64(waiting))
	return nil
}

func imageGauges(ctx context.Context, dirs config.Dirs, gauges *metrics.Changes) error {
	local, err := store.Open(dirs.Store)
	if err != nil {
		return err
	}
	images, err := local.List(ctx)
	if err != nil {
		return err
	}
	var size int64
	for _, image := range images {
		size += image.Size()
	}
	gauges.Set("sardine_images", float64(len(images)))
	gauges.Set("sardine_image_bytes", float64(size))
	return nil
}

// cacheGauges counts caches. It would take too long to measure shares.
func cacheGauges(dirs config.Dirs, gauges *metrics.Changes) error {
	caches, err := cache.List(dirs.Caches)
	if err != nil {
		return err
	}
	count, size := map[cache.Mode]float64{}, float64(0)
	for _, c := range caches {
		count[c.Mode]++
		size += float64(c.Size)
	}
	for _, mode := range []cache.Mode{cache.Disk, cache.Share} {
		gauges.Set("sardine_caches", count[mode], "mode", string(mode))
	}
	gauges.Set("sardine_cache_disk_bytes", size)
	return nil
}

func snapshotGauges(dirs config.Dirs, gauges *metrics.Changes) error {
	count, size, err := snapshot.Usage(dirs.Snapshots())
	if err != nil {
		return err
	}
	gauges.Set("sardine_snapshots", float64(count))
	gauges.Set("sardine_snapshot_bytes", float64(size))
	return nil
}
