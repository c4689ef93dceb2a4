package executor

import (
	"context"
	"errors"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/guestshell"
	"gitlab-sardine-executor/vm/cache"
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
func (d *Driver) mountCache(ctx context.Context, machine instance, dir string) error {
	mount := machine.Info().Cache
	if mount.Mode == "" {
		return nil
	}
	mount.Dir = dir
	err := guestshell.MountCache(ctx, machine, mount, d.Log)
	if errors.Is(err, guestshell.ErrCacheUnusable) {
		d.dropCache(machine)
		return nil
	}
	return err
}

// dropCache removes a cache disk after a failure. A damaged file system can crash the
// guest, at boot or at the mount, and would do so in every job of the project.
func (d *Driver) dropCache(machine instance) {
	info := machine.Info()
	if info.Cache.Mode != config.CacheDisk {
		return
	}
	if err := machine.DropCache(); err != nil {
		d.admin().Warn("cannot drop a cache disk that may be damaged", "cache", info.CacheName, "error", err)
		return
	}
	d.admin().Warn("dropped a cache disk that may be damaged", "cache", info.CacheName)
}

// flushCache flushes the guest's cache disk before the machine is destroyed. The
// machine is destroyed even if that fails.
func (d *Driver) flushCache(ctx context.Context, host machineHost) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := host.FlushCache(ctx, d.Settings.For(d.Job.Image).GuestCacheDir); err != nil {
		d.admin().Warn("cannot flush the cache, which may lack recent writes", "error", err)
	}
}
