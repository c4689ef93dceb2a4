package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"libvirt.org/go/libvirt"
)

const (
	// bootPoll is how often a driver looks whether a booting guest still runs,
	// runPoll whether one does that runs a command.
	bootPoll = 250 * time.Millisecond
	runPoll  = 2 * time.Second
	// addressPoll is how often it asks for the address.
	addressPoll = 100 * time.Millisecond
	// retryPause comes after a connection that broke during log-in: sshd, too,
	// drops connections while a system boots.
	retryPause = 200 * time.Millisecond
	// consoleLines is how many of the console's last lines an error shows.
	consoleLines = 12
)

// A Guest is a machine that runs.
type Guest struct {
	// Notes and Warnings say what the machine got otherwise than the image or the
	// settings asked for, one line each.
	Notes, Warnings []string

	host    *Host
	dom     *libvirt.Domain
	name    string
	record  Record
	jobDir  string
	network network // nil for a guest that was looked up
	client  *ssh.Client
}

// Find finds the machine of that name. The error is [ErrNoDomain] if there is
// none and [ErrNotOurs] if the domain is not a job's.
func Find(ctx context.Context, h *Host, name, jobDir string) (*Guest, error) {
	dom, err := h.domain(ctx, name)
	if err != nil {
		return nil, err
	}
	record, err := readRecord(ctx, dom)
	if err != nil {
		return nil, fmt.Errorf("domain %s: %w", name, err)
	}
	return &Guest{host: h, dom: dom, name: name, record: record, jobDir: jobDir}, nil
}

// Name of the domain.
func (g *Guest) Name() string { return g.name }

// Record is what the domain says of its job.
func (g *Guest) Record() Record { return g.record }

// Close ends the connections to the guest, which goes on.
func (g *Guest) Close() error {
	if g.client == nil {
		return nil
	}
	err := g.client.Close()
	g.client = nil
	return err
}

// WaitReady waits until the guest has an address and its SSH server lets login
// in, and writes address, host key and user into the domain's record. The
// deadline of ctx is the only one; when it passes, the error is [ErrNoAnswer].
// A guest that stops ([ErrGuestStopped]) or refuses the credentials
// ([ErrLogin]) ends the wait at once. Errors end with what the guest last wrote
// to its console.
func (g *Guest) WaitReady(ctx context.Context, login Login) error {
	waiting, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go g.watch(waiting, bootPoll, giveUp)

	err := g.becomeReady(waiting, login)
	if err == nil {
		return nil
	}
	if cause := context.Cause(waiting); cause != nil {
		err = cause
		if errors.Is(cause, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %s", ErrNoAnswer, g.progress())
		}
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return g.withConsole(err)
}

// becomeReady tries until the guest lets us in or ctx ends.
func (g *Guest) becomeReady(ctx context.Context, login Login) error {
	addr, err := g.waitAddress(ctx)
	if err != nil {
		return err
	}
	g.record.Address = addr
	for {
		conn, err := knock(ctx, addr)
		if err != nil {
			return err
		}
		client, key, err := handshake(ctx, conn, login, nil)
		if err == nil {
			g.client = client
			g.record.User = login.User
			g.record.HostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
			return g.record.store(ctx, g.dom)
		}
		if errors.Is(err, ErrLogin) || errors.Is(err, ErrSpec) {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

func (g *Guest) waitAddress(ctx context.Context) (string, error) {
	for {
		addr, err := g.network.address(ctx, g.dom)
		if addr != "" || err != nil {
			return addr, err
		}
		select {
		case <-time.After(addressPoll):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// progress says how far a guest came that did not become ready in time.
func (g *Guest) progress() string {
	if g.record.Address == "" {
		return "it runs, but got no address from the network (does it use DHCP?)"
	}
	return fmt.Sprintf("it runs, but nobody let us in by SSH at %s (does its SSH server start at boot?)", g.record.Address)
}

// watch ends the wait when the guest is not running any more. An error of
// libvirt is not that: the daemon may be restarting.
func (g *Guest) watch(ctx context.Context, poll time.Duration, giveUp context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
		if err := g.alive(ctx); errors.Is(err, ErrGuestStopped) {
			giveUp(err)
			return
		}
	}
}

// alive returns [ErrGuestStopped] if the guest runs no more; other errors are
// libvirt's.
func (g *Guest) alive(ctx context.Context) error {
	type domainState struct {
		state  libvirt.DomainState
		reason int
	}
	s, err := await(ctx, "ask for the state of "+g.name, func() (domainState, error) {
		state, reason, err := g.dom.GetState()
		return domainState{state, reason}, err
	})
	if isCode(err, libvirt.ERR_NO_DOMAIN) {
		return fmt.Errorf("%w: it powered off or its QEMU died", ErrGuestStopped)
	}
	if err != nil {
		return err
	}
	switch s.state {
	case libvirt.DOMAIN_SHUTOFF, libvirt.DOMAIN_SHUTDOWN:
		return fmt.Errorf("%w: it is shutting down", ErrGuestStopped)
	case libvirt.DOMAIN_CRASHED:
		return fmt.Errorf("%w: it crashed", ErrGuestStopped)
	case libvirt.DOMAIN_PAUSED:
		switch libvirt.DomainPausedReason(s.reason) {
		case libvirt.DOMAIN_PAUSED_IOERROR:
			return fmt.Errorf("%w: paused by an I/O error of its disk (is the host's disk full?)", ErrGuestStopped)
		case libvirt.DOMAIN_PAUSED_CRASHED:
			return fmt.Errorf("%w: it crashed (guest panic)", ErrGuestStopped)
		}
	}
	return nil
}

// withConsole adds the last lines of the guest's console to an error.
func (g *Guest) withConsole(err error) error {
	tail := g.consoleTail()
	if tail == "" {
		return err
	}
	return &consoleError{err: err, tail: tail}
}

// consoleError keeps what a guest wrote apart from what we say: a log shows both,
// a one-line message only ours.
type consoleError struct {
	err  error
	tail string
}

func (e *consoleError) Error() string { return e.err.Error() }
func (e *consoleError) Unwrap() error { return e.err }

// ConsoleOf is the last lines of the console of the guest that err is about;
// empty if there are none.
func ConsoleOf(err error) string {
	var e *consoleError
	if errors.As(err, &e) {
		return e.tail
	}
	return ""
}

// consoleTail reads the end of the console log. What a guest writes there is
// anything: only printable text is passed on.
func (g *Guest) consoleTail() string {
	f, err := os.Open(filepath.Join(g.jobDir, ConsoleFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > most {
		f.Seek(-most, io.SeekEnd)
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) > consoleLines {
		lines = lines[len(lines)-consoleLines:]
	}
	printable := func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f && r != '\uFFFD' {
			return r
		}
		return -1
	}
	return string(bytes.Map(func(r rune) rune {
		if r == '\n' {
			return r
		}
		return printable(r)
	}, bytes.Join(lines, []byte("\n"))))
}

// Connect logs in to a guest that [Guest.WaitReady] found ready before, in this
// process or another, and insists on the host key that it saw.
func (g *Guest) Connect(ctx context.Context, login Login) error {
	if g.client != nil {
		return nil
	}
	if g.record.Address == "" || g.record.HostKey == "" {
		return fmt.Errorf("machine %s was never ready: its record has no address", g.name)
	}
	pinned, _, _, _, err := ssh.ParseAuthorizedKey([]byte(g.record.HostKey))
	if err != nil {
		return fmt.Errorf("read the host key of %s: %w", g.name, err)
	}
	conn, err := knock(ctx, g.record.Address)
	if err != nil {
		return fmt.Errorf("%w: connect to %s: %w", ErrLost, g.record.Address, err)
	}
	client, _, err := handshake(ctx, conn, login, pinned)
	if err != nil {
		return err
	}
	g.client = client
	return nil
}

// Run runs a command in the guest, to which [Guest.Connect] or
// [Guest.WaitReady] have connected, and returns its exit status; 128+n if
// signal n ended it. The error is [ErrLost] if the connection broke and
// [ErrGuestStopped] if the guest did.
func (g *Guest) Run(ctx context.Context, cmd Command) (int, error) {
	running, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	go g.watch(running, runPoll, giveUp)
	status, err := run(running, g.client, cmd)
	if err == nil {
		return status, nil
	}
	if cause := context.Cause(running); cause != nil {
		err = cause
	} else if gone := g.alive(ctx); errors.Is(gone, ErrGuestStopped) {
		err = gone
	}
	return 0, g.withConsole(err)
}

// Remove ends a machine and removes all that it had: domain, overlays, helper
// processes, job directory. What is not there any more is no error. A domain of
// that name that is not a job's is [ErrNotOurs], and nothing is touched.
func Remove(ctx context.Context, h *Host, name, cloneDir, jobDir string) error {
	if err := destroy(ctx, h, name); err != nil {
		return err
	}
	return errors.Join(RemoveFiles(name, cloneDir, jobDir), h.undefineGuestFilter(ctx))
}

// RemoveFiles removes what a machine leaves on the host beside its domain, which
// must be gone.
func RemoveFiles(name, cloneDir, jobDir string) error {
	return errors.Join(passtFiles(name, cloneDir, jobDir).stop(), os.RemoveAll(filepath.Join(cloneDir, name)), os.RemoveAll(jobDir))
}

// destroy ends the domain if it is there and a job's.
func destroy(ctx context.Context, h *Host, name string) error {
	dom, err := h.domain(ctx, name)
	if errors.Is(err, ErrNoDomain) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	if _, err = readRecord(ctx, dom); err == nil {
		err = awaitDone(ctx, "destroy domain "+name, dom.Destroy)
	}
	if isCode(err, libvirt.ERR_NO_DOMAIN) || isCode(err, libvirt.ERR_OPERATION_INVALID) {
		return nil // it ended by itself in the meantime
	}
	if errors.Is(err, ErrNotOurs) {
		return fmt.Errorf("domain %s: %w", name, err)
	}
	return err
}
