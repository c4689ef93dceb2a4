package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt"
	"gitlab-sardine-executor/vm/watch"
)

const (
	// runPoll is how often Run checks that the guest is still running.
	runPoll = 2 * time.Second
	// stopGrace bounds the time between the loss of the connection and the moment when
	// libvirt reports that the guest has stopped: one that shuts down ends its SSH sessions
	// first.
	stopGrace = 30 * time.Second
	// networkGrace is the same after the end of the guest's network.
	networkGrace = 3 * time.Second
	// watchAfter is the time that a login takes before the machine is watched.
	watchAfter = time.Second
)

// An Instance is a running machine that has been ready once.
type Instance struct {
	host   *virt.Host
	dom    *virt.Domain
	name   string
	record record.Record
	jobDir string
	client *guestssh.Client
}

// Find finds the machine that a job knows by that name. The error is [errdefs.ErrNoDomain] if
// there is none, [errdefs.ErrBeforeLogin] and [errdefs.ErrPoweredOff] too if its guest shut it down, and
// [errdefs.ErrNotOurs] if the domain is not the job's.
func Find(ctx context.Context, h *virt.Host, name, jobDir string) (*Instance, error) {
	domain, at, err := Place{JobDir: jobDir}.Locate(ctx, h, name)
	if err != nil {
		return nil, err
	}
	dom, err := h.Domain(ctx, domain)
	var found record.Record
	if err == nil {
		if found, err = record.Read(ctx, dom); err != nil {
			err = fmt.Errorf("domain %s: %w", domain, err)
		}
	}
	if errors.Is(err, errdefs.ErrNoDomain) && isDir(at.JobDir) && h.PoweredOff(domain) {
		return nil, fmt.Errorf("%w: %w: %w", errdefs.ErrBeforeLogin, errdefs.ErrPoweredOff, err)
	}
	if err == nil && domain != name && found.Machine != name {
		err = fmt.Errorf("domain %s: %w: %s has not taken it", domain, errdefs.ErrNotOurs, name)
	}
	if err != nil {
		return nil, err
	}
	return &Instance{host: h, dom: dom, name: domain, record: found, jobDir: at.JobDir}, nil
}

// Name of the domain.
func (i *Instance) Name() string { return i.name }

// JobDir is the directory of the machine's files.
func (i *Instance) JobDir() string { return i.jobDir }

// Record of the job that has the machine.
func (i *Instance) Record() record.Record { return i.record }

// CacheMode is the mode of the machine's cache; empty if it has none.
func (i *Instance) CacheMode() cache.Mode { return cache.ModeOf(i.record.Cache) }

// Close closes the connection to the guest. The machine continues to run.
func (i *Instance) Close() error {
	if i.client == nil {
		return nil
	}
	err := i.client.Close()
	i.client = nil
	return err
}

// Connect logs in to a guest that was ready before, in this process or another. It requires
// the host key and the machine that were seen then: the error is [network.ErrContested] if
// another machine answers at the guest's address. It is [errdefs.ErrBeforeLogin] if the guest stops
// or reboots meanwhile, and [errdefs.ErrPoweredOff] or [errdefs.ErrRebooted] too.
func (i *Instance) Connect(ctx context.Context, login guestssh.Login) error {
	if i.client != nil {
		return nil
	}
	connecting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Most guests answer at once.
	watching := time.AfterFunc(watchAfter, func() {
		watch.Watch{Domain: i.dom, Poll: bootPoll, Running: true}.Run(connecting, cancel)
	})
	defer watching.Stop()
	err := i.connect(connecting, login)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, guestssh.ErrLogin) && !errors.Is(err, guestssh.ErrHostKey) && !errors.Is(err, network.ErrContested) {
		err = errors.Join(i.awaitEnd(connecting), err) // the guest may be shutting down
	}
	if end := i.endOf(ctx, context.Cause(connecting)); end != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrBeforeLogin, end)
	}
	return err
}

// endOf returns the error of a guest that has stopped or rebooted; nil if it has not. cause
// is that of the watch, which may have begun too late to see why.
func (i *Instance) endOf(ctx context.Context, cause error) error {
	if errors.Is(cause, errdefs.ErrPoweredOff) || errors.Is(cause, errdefs.ErrRebooted) {
		return cause
	}
	stopped := watch.Alive(ctx, i.dom)
	if !errors.Is(stopped, errdefs.ErrGuestStopped) {
		return nil
	}
	if i.host.PoweredOff(i.name) {
		return errdefs.ErrPoweredOff
	}
	return stopped
}

func (i *Instance) connect(ctx context.Context, login guestssh.Login) error {
	if i.record.Address == "" || i.record.HostKey == "" {
		return fmt.Errorf("machine %s was never ready: its record has no address", i.name)
	}
	pinned, err := guestssh.ParseHostKey(i.record.HostKey)
	if err != nil {
		return fmt.Errorf("machine %s: %w", i.name, err)
	}
	began := time.Now()
	conn, err := guestssh.Dial(ctx, i.record.Address, network.StalledIn(i.jobDir))
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: no answer at %s for %.0f s", guestssh.ErrLost, i.record.Address, time.Since(began).Seconds())
	}
	if err != nil {
		return fmt.Errorf("%w: connect to %s: %w", guestssh.ErrLost, i.record.Address, err)
	}
	i.client, err = i.logIn(ctx, conn, login, pinned)
	return err
}

// Run runs a command in the guest, after [Instance.Connect] or [Started.WaitReady], and
// returns its exit status; 128+n if signal n ended it. The error is [guestssh.ErrLost] if
// the connection broke, [errdefs.ErrGuestStopped] if the guest stopped, of which [errdefs.ErrPoweredOff] is
// one, and [errdefs.ErrRebooted] if it rebooted.
func (i *Instance) Run(ctx context.Context, cmd guestssh.Command) (int, error) {
	return i.run(ctx, cmd, nil)
}

func (i *Instance) run(ctx context.Context, cmd guestssh.Command, n network.Network) (int, error) {
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go watch.Watch{Domain: i.dom, Network: n, Poll: runPoll, Running: true}.Run(running, cancel)
	if cmd.Keepalive.Still == nil {
		cmd.Keepalive.Still = func(ctx context.Context) bool { return watch.StandsStill(ctx, i.dom) }
	}
	status, err := i.client.Run(running, cmd)
	if err == nil {
		return status, nil
	}
	if errors.Is(err, guestssh.ErrLost) && !errors.Is(err, guestssh.ErrSilent) {
		err = errors.Join(i.awaitEnd(running), err)
	}
	if cause := context.Cause(running); cause != nil {
		err = cause
	}
	if errors.Is(err, errdefs.ErrGuestStopped) && i.host.PoweredOff(i.name) {
		err = errdefs.ErrPoweredOff // the event that says so may be lost
	}
	if errors.Is(err, errdefs.ErrPoweredOff) || errors.Is(err, errdefs.ErrRebooted) {
		return 0, err
	}
	return 0, console.WithTail(err, filepath.Join(i.jobDir, ConsoleFile))
}

// awaitEnd waits, after the connection was lost, until running ends, because the guest has
// stopped or rebooted. It returns earlier, with an error, if the guest's network has ended
// and the guest has not.
func (i *Instance) awaitEnd(running context.Context) error {
	grace := time.After(stopGrace)
	var disconnected time.Time
	for {
		select {
		case <-running.Done():
			return nil
		case <-grace:
			return nil
		case <-time.After(bootPoll):
		}
		err := network.CheckForwarder(i.jobDir, i.record.Address)
		if err == nil {
			continue
		}
		if disconnected.IsZero() {
			disconnected = time.Now()
		}
		if time.Since(disconnected) > networkGrace {
			return err
		}
	}
}

// Shell runs an interactive shell: see [guestssh.Client.Shell].
func (i *Instance) Shell(ctx context.Context, stdin *os.File, stdout, stderr io.Writer) (int, error) {
	return i.client.Shell(ctx, stdin, stdout, stderr)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// logIn logs in over a connection to the guest's address, if this machine is at its other
// end: no other machine gets the credentials.
func (i *Instance) logIn(ctx context.Context, conn net.Conn, login guestssh.Login, pinned ssh.PublicKey) (*guestssh.Client, error) {
	if err := i.checkAddress(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	client, err := guestssh.Handshake(ctx, conn, login, pinned)
	if err != nil {
		return nil, err
	}
	// Again: another machine could have taken the address during the handshake. And this
	// machine must still be running: after its end another machine may have its address.
	err = i.checkAddress(ctx)
	if err == nil {
		err = watch.Alive(ctx, i.dom)
	}
	if err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// checkAddress makes sure that an established connection leads to this machine: see
// [network.CheckAddress].
func (i *Instance) checkAddress(ctx context.Context) error {
	return network.CheckAddress(ctx, i.dom, i.jobDir, i.record.Address, strings.Fields(i.record.MAC))
}
