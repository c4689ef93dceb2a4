// Package nesting offers GitLab's nesting API on a UNIX socket: GitLab Runner's instance
// executor makes a machine for each job by it, on any number of hosts.
//
// It uses the server of gitlab.com/gitlab-org/fleeting/nesting, which defines the protocol.
// A machine is made as in the prepare stage of the custom executor, and removed as in its
// cleanup stage.
package nesting

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"gitlab.com/gitlab-org/fleeting/nesting/api"

	"gitlab-sardine-executor/executor/serve"
)

// startTimeout bounds the start of the module's server, and what follows it.
const startTimeout = 30 * time.Second

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
	dirs, err := settings.Dirs()
	if err != nil {
		return err
	}
	public, err := listen(settings.Serve.NestingPath, settings.Serve.NestingGroup)
	if err != nil {
		return fmt.Errorf("offer the nesting API: %w", err)
	}
	defer public.Close()
	private, err := makePrivate(filepath.Join(dirs.Jobs, ".nesting"))
	if err != nil {
		return fmt.Errorf("offer the nesting API: %w", err)
	}
	defer private.remove()
	made := newMachines(c.Env, ctx)
	ended := make(chan error, 1)
	if err := private.serve(ctx, made, ended); err != nil {
		return fmt.Errorf("offer the nesting API: %w", err)
	}
	c.adopt(ctx, made, private)
	c.Log.Info("the nesting API is offered", "socket", public.Addr().String())
	forwarding := make(chan struct{})
	go func() {
		defer close(forwarding)
		private.forward(public, c.Log)
	}()
	select {
	case <-ctx.Done():
		public.Close()
		err = <-ended
	case err = <-ended:
		public.Close()
	}
	<-forwarding
	return err
}

// adopt looks after the machines of an earlier serve. If there are any, the API has been
// initialized, and a client that only removes its machine does not do that again. Those that
// were not ready belong to no client.
func (c *Component) adopt(ctx context.Context, made *machines, private *private) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	found, err := made.adopt(ctx)
	if err == nil && found > 0 {
		var conn api.Client
		if conn, err = private.client(); err == nil {
			err = errors.Join(conn.Init(ctx, nil), conn.Close())
		}
	}
	if err != nil && ctx.Err() == nil {
		c.Log.Warn("the machines of an earlier serve are not known", "error", err)
	}
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
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

// socketVariable tells the module's server where to listen.
const socketVariable = "NESTING_SOCKET"

// environment protects socketVariable.
var environment sync.Mutex

// A private is the socket of the module's server, which knows neither modes of sockets nor
// limits, in a directory that only this user can enter. Connections to the public socket are
// forwarded to it.
type private struct {
	path string
	dir  *os.File
}

// makePrivate makes the directory. What is there was left by a process that died.
func makePrivate(path string) (*private, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &private{path, dir}, nil
}

// socket is the path of the socket, which is short: paths of sockets are limited to 107 bytes.
func (p *private) socket() string { return fmt.Sprintf("/proc/self/fd/%d/s", p.dir.Fd()) }

func (p *private) remove() {
	os.RemoveAll(p.path)
	p.dir.Close()
}

func (p *private) dial() (net.Conn, error) { return net.Dial("unix", p.socket()) }

func (p *private) client() (api.Client, error) {
	conn, err := api.NewClientConn("unix://"+p.socket(), nil)
	if err != nil {
		return nil, err
	}
	return api.New(conn), nil
}

// serve starts the module's server, and waits until it listens.
func (p *private) serve(ctx context.Context, made *machines, ended chan<- error) error {
	environment.Lock()
	defer environment.Unlock()
	if err := os.Setenv(socketVariable, p.socket()); err != nil {
		return err
	}
	defer os.Unsetenv(socketVariable)
	failed := make(chan error, 1)
	go func() {
		err := api.Serve(ctx, made)
		failed <- err
		ended <- err
	}()
	for deadline := time.After(startTimeout); ; {
		conn, err := p.dial()
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-failed:
			return err
		case <-deadline:
			return fmt.Errorf("its server does not listen: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
}
