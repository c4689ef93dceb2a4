package admin

import (
	"cmp"
	"context"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/vm/define"
	"gitlab-sardine-executor/vm/virt"
)

// cloneTimeout bounds a clone, which takes long only when it starts on a busy host.
const cloneTimeout = 5 * time.Minute

// Clone clones a defined domain; see [define.Clone]. What o leaves empty comes from the
// settings, as does connect, libvirt's URI.
func Clone(ctx context.Context, settings *config.Settings, connect string, o define.CloneOptions) (*define.ClonedDomain, error) {
	dirs, err := settings.Dirs()
	if err != nil {
		return nil, err
	}
	o.Dir = cmp.Or(o.Dir, dirs.Overlays)
	o.OmitBackingStore = cmp.Or(o.OmitBackingStore, settings.For("").OmitBackingStore)
	ctx, cancel := context.WithTimeout(ctx, cloneTimeout)
	defer cancel()
	host, err := virt.Open(ctx, cmp.Or(connect, settings.Defaults.Connect))
	if err != nil {
		return nil, err
	}
	defer host.Close()
	return define.Clone(ctx, host, o)
}
