package executor

import (
	"context"
	_ "embed" // the guest's part
	"errors"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm"
	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/virt"
)

// flushTimeout bounds the flush of the cache before the machine is destroyed.
const flushTimeout = 5 * time.Second

// cache returns the cache for the job's machine; nil for none, also if the owner of the
// job is not known.
func (d *Driver) cache(settings config.Resolved, dirs config.Dirs) *cache.Config {
	if settings.Cache == config.CacheNone {
		return nil
	}
	if settings.Windows() { // cannot read the cache's file systems, and has no sh
		d.admin().Warn("no cache: the guest runs Windows", "image", settings.Image)
		return nil
	}
	owner := d.Job.Owner
	if owner.Instance == "" || owner.Project == "" {
		d.Log.Warn("no cache on this host: the job's payload (JOB_RESPONSE_FILE) does not name its project and its GitLab server")
		return nil
	}
	if owner.RefUnknown {
		d.admin().Warn("protected and unprotected refs share a cache: GitLab or its runner is older than 18.3 and does not tell which refs are protected")
	}
	return &cache.Config{
		Mode:  cache.Mode(settings.Cache),
		Dir:   dirs.Caches,
		Key:   owner.CacheKey(),
		Owner: owner.String(),
		Size:  int64(d.Settings.Defaults.CacheSize),
	}
}

// mountCache mounts the cache in the guest, and drops a cache that cannot be used.
func (d *Driver) mountCache(ctx context.Context, guest *vm.Guest, dir string) error {
	mode := guest.CacheMode()
	if mode == "" {
		return nil
	}
	err := guestshell.MountCache(ctx, guest, guestshell.Cache{
		Mode: string(mode), Label: cache.Label, Dir: dir, Fresh: guest.CacheIsFresh(),
	}, d.Log)
	if errors.Is(err, guestshell.ErrCacheUnusable) {
		d.dropCache(guest)
		return nil
	}
	return err
}

// dropCache removes a cache disk after a failure. A damaged file system can crash the
// guest, at boot or at the mount, and would do so in every job of the project.
func (d *Driver) dropCache(guest *vm.Guest) {
	if guest.CacheMode() != cache.Disk {
		return
	}
	name := guest.Record().Cache
	if err := guest.DropCache(); err != nil {
		d.admin().Warn("cannot drop a cache disk that may be damaged", "cache", name, "error", err)
		return
	}
	d.admin().Warn("dropped a cache disk that may be damaged", "cache", name)
}

// flushCache flushes the guest's cache disk before the machine is destroyed. The
// machine is destroyed even if that fails.
func (d *Driver) flushCache(ctx context.Context, host *virt.Host, dirs config.Dirs) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	guest, err := vm.Find(ctx, host, d.Job.VMName(), d.jobDir(dirs))
	if err != nil || guest.CacheMode() != cache.Disk || guest.Record().Address == "" {
		return // vm.Remove reports the error
	}
	login, err := guestssh.LoadLogin(d.jobDir(dirs))
	if err == nil {
		err = guest.Connect(ctx, login)
	}
	if err == nil {
		defer guest.Close()
		err = guestshell.FlushCache(ctx, guest, d.Settings.For(d.Job.Image).GuestCacheDir)
	}
	if err != nil {
		d.admin().Warn("cannot flush the cache, which may lack recent writes", "cache", guest.Record().Cache, "error", err)
	}
}

// updateCacheGauges counts caches. It would take too long to measure shares.
func (d *Driver) updateCacheGauges(dirs config.Dirs) error {
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
		d.metrics.Set("sardine_caches", count[mode], "mode", string(mode))
	}
	d.metrics.Set("sardine_cache_disk_bytes", size)
	return nil
}
