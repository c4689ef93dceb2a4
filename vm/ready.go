package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/snapshot"
)

const (
	// bootPoll is how often a driver looks whether a booting guest still runs.
	bootPoll = 250 * time.Millisecond
	// addressPoll is how often it asks for the address, and movePoll whether the one
	// that it knows still is the guest's: firmware that boots from the network, or
	// an initramfs, can have had another.
	addressPoll = 100 * time.Millisecond
	movePoll    = time.Second
	// retryPause comes after a log-in that failed but may not fail the next time.
	retryPause = 200 * time.Millisecond
	// contestedGrace is how long another machine may answer at the address of one
	// that starts: it can be about to leave.
	contestedGrace = 5 * time.Second
	// absentTimeout bounds the question why nobody answers.
	absentTimeout = 2 * time.Second
)

// errMoved: the guest got another address.
var errMoved = errors.New("the guest has another address now")

// WaitReady waits until the guest has an address and its SSH server lets login
// in, and writes address, host key and user into the domain's record. The
// deadline of ctx is the only one; when it passes, the error is [ErrNoAnswer]. A
// guest that stops ([ErrGuestStopped]) or refuses the credentials ([guestssh.ErrLogin])
// ends the wait at once, the latter unless login is late. A guest that goes on from
// a snapshot has its clock set. Errors hold what the
// guest last wrote to its console: see [ConsoleOf].
func (g *Guest) WaitReady(ctx context.Context, login guestssh.Login) error {
	waiting, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	console := &panicWatch{path: filepath.Join(g.jobDir, ConsoleFile)}
	go g.watch(waiting, bootPoll, console, giveUp)

	err := g.becomeReady(waiting, login)
	if err == nil {
		return nil
	}
	if cause := context.Cause(waiting); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			cause = g.noAnswer(err)
		}
		err = cause
	} else if gone := g.alive(ctx); errors.Is(gone, ErrGuestStopped) {
		err = gone // and so it had no address
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return g.withConsole(err)
}

// becomeReady tries until the guest lets us in or ctx ends; then the error holds
// that of the last try as well.
func (g *Guest) becomeReady(ctx context.Context, login guestssh.Login) error {
	var pinned ssh.PublicKey
	if g.record.HostKey != "" { // given to the guest by us
		var err error
		if pinned, err = guestssh.ParseHostKey(g.record.HostKey); err != nil {
			return err
		}
	}
	var contested time.Time
	for {
		conn, err := g.greeting(ctx)
		if err != nil {
			return err
		}
		client, err := g.logIn(ctx, conn, login, pinned)
		if err == nil {
			g.client = client
			g.record.User = login.User
			g.record.HostKey = guestssh.FormatKey(client.HostKey)
			if g.Resumed() {
				return errors.Join(snapshot.Wake(ctx, g.Run), g.record.Store(ctx, g.dom))
			}
			if err := g.ejectSeed(ctx); err != nil {
				g.warn("eject the seed: " + err.Error()) // it holds nothing that the guest's root does not have
			}
			return g.record.Store(ctx, g.dom)
		}
		if errors.Is(err, network.ErrContested) && contested.IsZero() {
			contested = time.Now()
		}
		if final(err, login) || errors.Is(err, network.ErrContested) && time.Since(contested) > contestedGrace {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// ejectSeed takes the seed out of the drive of a guest that has read it, if it has one.
func (g *Guest) ejectSeed(ctx context.Context) error {
	doc, err := g.dom.XML(ctx)
	if err != nil {
		return err
	}
	drive, err := seed.EmptyDrive(doc)
	if err != nil || drive == "" {
		return err
	}
	return g.dom.UpdateDevice(ctx, drive)
}

// logIn logs in over a connection to the guest's address, if it is this machine that
// is at the other end: nobody else is shown the credentials.
func (g *Guest) logIn(ctx context.Context, conn net.Conn, login guestssh.Login, pinned ssh.PublicKey) (*guestssh.Client, error) {
	if err := g.verify(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	client, err := guestssh.Handshake(ctx, conn, login, pinned)
	if err != nil {
		return nil, err
	}
	// Once more: if another had taken the address since, the handshake could be with it.
	if err := g.verify(ctx); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// final says whether a log-in that failed with err would fail for ever.
func final(err error, login guestssh.Login) bool {
	switch {
	case errors.Is(err, guestssh.ErrBooting):
		return false
	case errors.Is(err, guestssh.ErrLogin), errors.Is(err, guestssh.ErrHostKey):
		return !login.Late
	}
	return errors.Is(err, ErrSpec)
}

// greeting waits for the guest's address and its SSH server's greeting, also if
// the address changes.
func (g *Guest) greeting(ctx context.Context) (net.Conn, error) {
	for {
		addr, err := g.waitAddress(ctx)
		if err != nil {
			return nil, err
		}
		g.record.Address = addr
		here, leave := context.WithCancelCause(ctx)
		go g.watchAddress(here, addr, leave)
		conn, err := guestssh.Dial(here, addr)
		leave(nil)
		if !errors.Is(err, errMoved) {
			return conn, err
		}
	}
}

func (g *Guest) waitAddress(ctx context.Context) (string, error) {
	for {
		addr, err := g.network.Address(ctx, g.dom)
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

// watchAddress calls leave when the guest has another address than addr.
func (g *Guest) watchAddress(ctx context.Context, addr string, leave context.CancelCauseFunc) {
	for {
		select {
		case <-time.After(movePoll):
		case <-ctx.Done():
			return
		}
		if now, err := g.network.Address(ctx, g.dom); err == nil && now != "" && now != addr {
			leave(errMoved)
			return
		}
	}
}

// noAnswer says how far a guest came that did not become ready in time; last is
// what the last try failed with.
func (g *Guest) noAnswer(last error) error {
	ctx, cancel := context.WithTimeout(context.Background(), absentTimeout)
	defer cancel()
	absent := g.network.Absent(ctx)
	switch {
	case errors.Is(last, network.ErrContested):
		return last
	case errors.Is(absent, network.ErrContested):
		return absent
	case errors.Is(last, guestssh.ErrLogin), errors.Is(last, guestssh.ErrHostKey):
		return fmt.Errorf("%w (it was given a key at boot; does the image have cloud-init, or systemd 252 or later?)", last)
	case g.record.Address == "", absent != nil:
		return fmt.Errorf("%w: it runs, but %w", ErrNoAnswer, network.ErrNoLease)
	}
	return fmt.Errorf("%w: it runs, but nobody let us in by SSH at %s (does its SSH server start at boot?)", ErrNoAnswer, g.record.Address)
}

// watch calls giveUp when the guest is not running any more, or nobody can reach
// it. An error of libvirt is not that: the daemon may be restarting. console may
// be nil.
func (g *Guest) watch(ctx context.Context, poll time.Duration, console *panicWatch, giveUp context.CancelCauseFunc) {
	cutOff := false
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
		if console != nil && console.seen() {
			giveUp(fmt.Errorf("%w: its kernel panicked", ErrGuestStopped))
			return
		}
		if g.network == nil {
			continue
		}
		// Seen twice: the network of a guest that has just stopped ends, too.
		if err := g.network.Ended(); err != nil && cutOff {
			giveUp(err)
			return
		} else {
			cutOff = err != nil
		}
	}
}

// alive returns [ErrGuestStopped] if the guest runs no more; other errors are
// libvirt's.
func (g *Guest) alive(ctx context.Context) error {
	reason, err := g.dom.StopReason(ctx)
	if err != nil {
		return err
	}
	if reason != "" {
		return fmt.Errorf("%w: %s", ErrGuestStopped, reason)
	}
	return nil
}
