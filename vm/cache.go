package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/domain"
)

// addCache gives the machine its cache, and says so in its record. unlock has to be
// called when libvirt knows the machine, or when nothing comes of it.
func (g *Guest) addCache(ctx context.Context, d *libvirtxml.Domain, spec *Spec) (unlock func() error, err error) {
	if spec.Cache == nil {
		return func() error { return nil }, nil
	}
	g.cache, unlock, err = spec.Cache.Acquire(ctx, g.host)
	if err != nil {
		return nil, err
	}
	if spec.Cache.Mode == cache.Disk {
		domain.AddCacheDisk(d, g.cache.Path, cache.Label)
	} else {
		domain.AddCacheShare(d, g.cache.Path, cache.Label)
	}
	spec.Record.Cache = g.cache.Name
	g.record = spec.Record
	if d.Metadata, err = spec.Record.Metadata(); err != nil {
		return nil, errors.Join(err, unlock())
	}
	return unlock, nil
}

// DropCache sees to it that no other machine gets the cache disk of this one, which
// keeps it until its end: it may be what a guest dies of. A share stays, since
// machines that run have it, too.
func (g *Guest) DropCache() error {
	if g.cache.Path == "" || g.CacheMode() != cache.Disk {
		return nil
	}
	if err := os.Remove(g.cache.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop the cache disk: %w", err)
	}
	return nil
}

// CacheMode is how this machine has its cache; empty if it has none.
func (g *Guest) CacheMode() cache.Mode {
	return cache.ModeOf(g.record.Cache)
}

// CacheIsFresh says whether no guest has ever written to the cache that this machine
// was started with.
func (g *Guest) CacheIsFresh() bool { return g.cache.Fresh }
