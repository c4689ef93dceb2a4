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
)

// flushTimeout bounds what the guest does before its end for its cache to be complete.
const flushTimeout = 5 * time.Second

// cache is the cache of the job's machine; nil for none. A job of which nobody knows
// whose it is gets none.
func (d *Driver) cache(settings config.Resolved, dirs config.Dirs) *cache.Config {
	if settings.Cache == config.CacheNone {
		return nil
	}
	if settings.Windows() { // which knows neither its file system nor sh
		d.admin().Warn("guests that run Windows have no cache on this host", "image", settings.Image)
		return nil
	}
	owner := d.Job.Owner
	if owner.Instance == "" || owner.Project == "" {
		d.Log.Warn("this job has no cache on this host: its payload (JOB_RESPONSE_FILE) does not say which project of which GitLab it belongs to")
		return nil
	}
	if owner.RefUnknown {
		d.admin().Warn("protected refs of the project share a cache with all others: GitLab or its runner does not say which are protected (18.3 and newer do)")
	}
	return &cache.Config{
		Mode:  cache.Mode(settings.Cache),
		Dir:   dirs.Caches,
		Key:   owner.CacheKey(),
		Owner: owner.String(),
		Size:  int64(d.Settings.Defaults.CacheSize),
	}
}

// mountCache has the guest mount its cache. A cache that is of no use is dropped: no
// later job will meet it again.
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

// dropCache sees to it that no other job meets a cache disk with which something went
// wrong: a file system can be what a guest dies of, at boot or when it is mounted, and
// would be that for every job of the project.
func (d *Driver) dropCache(guest *vm.Guest) {
	if guest.CacheMode() != cache.Disk {
		return
	}
	name := guest.Record().Cache
	if err := guest.DropCache(); err != nil {
		d.admin().Warn("a cache disk that may be damaged stays", "cache", name, "error", err)
		return
	}
	d.admin().Warn("dropped a cache disk that may be damaged", "cache", name)
}

// flushCache has the guest write what it still holds in its memory to its cache disk:
// the machine is about to be ended as if its power failed. A guest that cannot do that
// soon has its end all the same.
func (d *Driver) flushCache(ctx context.Context, host *vm.Host, dirs config.Dirs) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	guest, err := vm.Find(ctx, host, d.Job.VMName(), d.jobDir(dirs))
	if err != nil || guest.CacheMode() != cache.Disk || guest.Record().Address == "" {
		return // an error is vm.Remove's to report
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
		d.admin().Warn("the cache may lack what the job wrote last", "cache", guest.Record().Cache, "error", err)
	}
}

// gaugeCaches counts the caches. What shares take would take too long to add up.
func (d *Driver) gaugeCaches(dirs config.Dirs) error {
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
