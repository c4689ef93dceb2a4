package policy

import (
	"context"
	"net/url"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/vm/network/passt"
)

// lookupTimeout bounds the look-up of the name of a GitLab server.
const lookupTimeout = 5 * time.Second

// A ServerHint finds out, while a guest boots, whether the guest will not reach the job's
// GitLab server because that is this host.
type ServerHint struct{ address chan string }

// HintFor looks up the server, the URL of a GitLab server, for a guest with these settings.
func HintFor(ctx context.Context, settings config.Resolved, server string) ServerHint {
	hint := ServerHint{make(chan string, 1)}
	u, err := url.Parse(server)
	if err != nil || settings.Network != config.UserNetwork || settings.HostAccess || !passt.Installed() {
		return hint
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		defer cancel()
		if address := passt.HostAt(ctx, u.Hostname()); address != "" {
			hint.address <- address
		}
	}()
	return hint
}

// Tell writes a warning to the job's log if the guest does not reach the server. It waits for
// nothing.
func (h ServerHint) Tell(log *joblog.Log) {
	select {
	case address := <-h.address:
		log.Warn("GitLab's server is the runner's own host (%s), which guests on the network %q do not reach: the administrator can set host_access = true", address, config.UserNetwork)
	default:
	}
}
