// Package nesting offers GitLab's nesting API on a UNIX socket: GitLab Runner's instance
// executor makes a machine for each job by it, on any number of hosts.
//
// gitlab.com/gitlab-org/fleeting/nesting defines the protocol, and has the client of GitLab
// Runner. A machine is made as in the prepare stage of the custom executor, and removed as in its
// cleanup stage.
package nesting

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os/user"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"gitlab-sardine-executor/executor/serve"
	"gitlab-sardine-executor/internal/rpc"
)

const (
	// startTimeout bounds the look at the machines of an earlier serve.
	startTimeout = 30 * time.Second
	// maxClients bounds the connections of clients. GitLab Runner has one for each job.
	maxClients = 256
)

// A Component is the part of serve that offers the API.
type Component struct {
	serve.Env

	mu  sync.Mutex
	err error // of the start
}

// New returns the component. It does nothing without the setting nesting.
func New(env serve.Env) *Component { return &Component{Env: env} }

// Name is that of the component.
func (*Component) Name() string { return "nesting" }

// Health is the error of the look at the machines of an earlier serve.
func (c *Component) Health() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Run serves the API until ctx ends. Machines stay: the runner removes them by the next serve,
// or sweep when they have expired.
func (c *Component) Run(ctx context.Context) error {
	settings := c.Settings.Get()
	if !settings.Serve.Nesting {
		return nil
	}
	listener, err := listen(settings.Serve.NestingPath, settings.Serve.NestingGroup)
	if err != nil {
		return fmt.Errorf("offer the nesting API: %w", err)
	}
	made := newMachines(c.Env, ctx)
	service := &service{hypervisor: made, initialized: c.adopt(ctx, made), slots: map[int32]string{}}
	c.Log.Info("the nesting API is offered", "socket", listener.Addr().String())
	server := &rpc.Server{Methods: service.methods(), Log: log.New(reports{c.Log}, "", 0)}
	return server.Serve(ctx, netutil.LimitListener(listener, maxClients))
}

// reports writes what net/http reports to the administrator's log.
type reports struct{ log *slog.Logger }

func (r reports) Write(line []byte) (int, error) {
	r.log.Warn("the server of the nesting API reports a problem", "error", readable(string(bytes.TrimSpace(line))))
	return len(line), nil
}

// adopt looks after the machines of an earlier serve. If there are any, the API has been
// initialized, and a client that only removes its machine does not do that again. Those that
// were not ready belong to no client.
func (c *Component) adopt(ctx context.Context, made *machines) (initialized bool) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	found, err := made.adopt(ctx)
	if err != nil && ctx.Err() == nil {
		c.Log.Warn("the machines of an earlier serve are not known", "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	return err == nil && found > 0
}

// listen opens the socket for clients.
func listen(at func() (string, error), group string) (net.Listener, error) {
	path, err := at()
	if err != nil {
		return nil, err
	}
	id := -1
	if group != "" {
		if id, err = groupID(group); err != nil {
			return nil, err
		}
	}
	return serve.ListenUnix(path, id)
}

func groupID(name string) (int, error) {
	found, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("the setting nesting_group: %w", err)
	}
	return strconv.Atoi(found.Gid)
}
