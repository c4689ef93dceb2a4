package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"gitlab-sardine-executor/vm/cache"
	"gitlab-sardine-executor/vm/console"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/firmware"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/network"
	"gitlab-sardine-executor/vm/seed"
	"gitlab-sardine-executor/vm/snapshot"
	"gitlab-sardine-executor/vm/watch"
)

const (
	// bootPoll is how often WaitReady checks that the guest is still running.
	bootPoll = 250 * time.Millisecond
	// addressPoll is the time until it asks again for the address after the network has
	// reported a change. If it reports nothing, the time grows to addressPollMax.
	addressPoll    = 100 * time.Millisecond
	addressPollMax = time.Second
	// movePoll is how often it checks that the known address is still the guest's: firmware
	// that boots from the network, or an initramfs, may have had another. If the network
	// reports nothing, the time grows to movePollMax.
	movePoll    = time.Second
	movePollMax = 5 * time.Second
	// retryPause follows a login that failed and may succeed the next time.
	retryPause = 200 * time.Millisecond
	// handshakeTimeout bounds the first login after the server's banner. Each further one
	// may take twice as long, up to handshakeMax, after which OpenSSH ends it
	// (LoginGraceTime): a guest that reboots meanwhile never answers.
	handshakeTimeout = 30 * time.Second
	handshakeMax     = 2 * time.Minute
	// contestedGrace is how long another machine may answer at the address of one that
	// starts: it may be shutting down.
	contestedGrace = 5 * time.Second
	// absentTimeout bounds the search for the reason why a guest does not answer.
	absentTimeout = 2 * time.Second
)

// errMoved: the guest got another address.
var errMoved = errors.New("the guest has another address now")

// A Started is a machine that [Start] has started in this process.
type Started struct {
	*Instance
	// Notes and Warnings say how the machine differs from what the image or the settings
	// ask for, one line each.
	Notes, Warnings []string
	// Overlays are the paths of the overlays, by the names of the image's disks. With
	// [Spec.KeepOverlays] they are complete once the guest has powered off and its domain is gone.
	Overlays map[string]string

	network  network.Network
	changed  <-chan struct{} // see [network.Network.Watch]
	cache    cache.Cache
	snapshot *snapshot.Snapshot // that it resumed from; nil if it booted

	loginGrace time.Duration // see Spec
	tools      bool

	idle    bool           // it had waited for the job: see [Claim.Take]
	login   guestssh.Login // of such a machine
	settled bool           // also of such a machine
}

// WaitReady waits until the guest has an address and accepts the login, and stores address,
// host key and user in the machine's record. Only the deadline of ctx bounds the wait; the
// error is [errdefs.ErrNoAnswer] then, or [errdefs.ErrNoBoot]. WaitReady returns at once if the guest stops
// ([errdefs.ErrGuestStopped]) or has refused the credentials for [Spec.LoginGrace]
// ([guestssh.ErrLogin]); a login that is late may be refused until the deadline. It sets
// the clock of a guest that resumed from a snapshot. [console.TailOf] returns
// the last lines of the guest's console for its errors.
func (s *Started) WaitReady(ctx context.Context, login guestssh.Login) error {
	if s.idle {
		return nil // [Claim.Take] has logged in
	}
	waiting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	log := &console.PanicWatch{Path: filepath.Join(s.jobDir, ConsoleFile)}
	go watch.Watch{Domain: s.dom, Network: s.network, Console: log, Poll: bootPoll}.Run(waiting, cancel)

	s.changed = s.network.Watch(waiting)
	err := s.becomeReady(waiting, login)
	if err == nil {
		return nil
	}
	if cause := context.Cause(waiting); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			cause = s.noAnswer(err)
		}
		err = cause
	} else if stopped := watch.Alive(ctx, s.dom); errors.Is(stopped, errdefs.ErrGuestStopped) {
		err = stopped // which is why it had no address
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return console.WithTail(err, filepath.Join(s.jobDir, ConsoleFile))
}

// Run is [Instance.Run]. It also fails when the network of the guest ends.
func (s *Started) Run(ctx context.Context, cmd guestssh.Command) (int, error) {
	return s.run(ctx, cmd, s.network)
}

// becomeReady retries until the guest accepts the login or ctx ends. Then the error also
// contains that of the last attempt.
func (s *Started) becomeReady(ctx context.Context, login guestssh.Login) error {
	var pinned ssh.PublicKey
	if s.record.HostKey != "" { // the key that the guest was given
		var err error
		if pinned, err = guestssh.ParseHostKey(s.record.HostKey); err != nil {
			return err
		}
	}
	var contested time.Time
	var refused guestssh.Refusals
	for patience := handshakeTimeout; ; patience = min(2*patience, handshakeMax) {
		conn, err := s.waitSSH(ctx)
		if err != nil {
			return err
		}
		if refused.Since.IsZero() {
			refused.Since = time.Now()
		}
		client, err := s.logInWithin(ctx, patience, conn, login, pinned)
		if err == nil {
			return s.loggedIn(ctx, client, login.User)
		}
		if errors.Is(err, network.ErrContested) && contested.IsZero() {
			contested = time.Now()
		}
		pause := retryPause
		if isRefusal(err) {
			pause = refused.Pause(conn)
			left := s.loginGrace - time.Since(refused.Since)
			if left <= 0 && !login.Late && !errors.Is(err, guestssh.ErrBooting) {
				return s.refusal(err, refused)
			}
			if !login.Late && left > 0 {
				pause = min(pause, left)
			}
		}
		if isFinal(err) || errors.Is(err, network.ErrContested) && time.Since(contested) > contestedGrace {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// logInWithin logs in, for patience at most. The connection may be lost without a sign.
func (s *Started) logInWithin(ctx context.Context, patience time.Duration, conn net.Conn, login guestssh.Login, pinned ssh.PublicKey) (*guestssh.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.logIn(ctx, conn, login, pinned)
}

// refusal describes a login that was refused too long.
func (s *Started) refusal(err error, refused guestssh.Refusals) error {
	if s.loginGrace == 0 {
		return err
	}
	return fmt.Errorf("%w: refused %d times in %.0f s (the setting login_grace)", err, refused.Count, time.Since(refused.Since).Seconds())
}

// loggedIn completes the record after the first login.
func (s *Started) loggedIn(ctx context.Context, client *guestssh.Client, user string) error {
	s.client = client
	s.record.User = user
	s.record.HostKey = guestssh.FormatKey(client.HostKey)
	if s.Resumed() {
		return errors.Join(snapshot.Wake(ctx, s.Run), s.record.Store(ctx, s.dom))
	}
	if err := s.ejectSeed(ctx); err != nil {
		// The seed holds nothing that root in the guest does not have anyway.
		s.Warnings = append(s.Warnings, "eject the seed: "+err.Error())
	}
	return s.record.Store(ctx, s.dom)
}

// ejectSeed ejects the seed if the guest has one. The guest has read it by now.
func (s *Started) ejectSeed(ctx context.Context) error {
	doc, err := s.dom.XML(ctx)
	if err != nil {
		return err
	}
	drive, err := seed.EmptyDrive(doc)
	if err != nil || drive == "" {
		return err
	}
	return s.dom.UpdateDevice(ctx, drive)
}

// isRefusal reports whether the guest refused the login, or is not the expected one. It may
// still be setting its users and keys.
func isRefusal(err error) bool {
	return errors.Is(err, guestssh.ErrLogin) || errors.Is(err, guestssh.ErrHostKey) || errors.Is(err, guestssh.ErrBooting)
}

// isFinal reports whether a login that failed with err, and was not refused, would fail
// again.
func isFinal(err error) bool {
	return !isRefusal(err) && errors.Is(err, errdefs.ErrInvalid)
}

// waitSSH waits for the guest's address and the banner of its SSH server. It starts again
// if the address changes.
func (s *Started) waitSSH(ctx context.Context) (net.Conn, error) {
	for {
		addr, err := s.waitAddress(ctx)
		if err != nil {
			return nil, err
		}
		s.record.Address = addr
		here, leave := context.WithCancelCause(ctx)
		go s.watchAddress(here, addr, leave)
		conn, err := guestssh.Dial(here, addr, s.network.Stalled)
		leave(nil)
		if !errors.Is(err, errMoved) {
			return conn, err
		}
	}
}

func (s *Started) waitAddress(ctx context.Context) (string, error) {
	for pause := addressPoll; ; pause = min(pause*5/4, addressPollMax) {
		addr, err := s.network.Address(ctx, s.dom)
		if addr != "" || err != nil {
			return addr, err
		}
		select {
		case <-s.changed:
			pause = addressPoll
		case <-time.After(pause):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// watchAddress calls leave when the guest has another address than addr.
func (s *Started) watchAddress(ctx context.Context, addr string, leave context.CancelCauseFunc) {
	for pause := movePoll; ; pause = min(pause*2, movePollMax) {
		select {
		case <-s.changed:
			pause = movePoll
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		if now, err := s.network.Address(ctx, s.dom); err == nil && now != "" && now != addr {
			leave(errMoved)
			return
		}
	}
}

// noAnswer describes how far a guest came that did not become ready in time. last is the
// error of the last attempt.
func (s *Started) noAnswer(last error) error {
	ctx, cancel := context.WithTimeout(context.Background(), absentTimeout)
	defer cancel()
	absent := s.network.Absent(ctx)
	refusal := firmware.Refusal(console.Tail(filepath.Join(s.jobDir, ConsoleFile)))
	switch {
	case refusal != "":
		return fmt.Errorf("%w: its firmware found nothing to boot, and wrote to the console: %s (the setting firmware chooses between BIOS and UEFI)", errdefs.ErrNoBoot, refusal)
	case errors.Is(last, network.ErrContested):
		return last
	case errors.Is(absent, network.ErrContested):
		return absent
	case errors.Is(last, guestssh.ErrLogin), errors.Is(last, guestssh.ErrHostKey):
		return fmt.Errorf("%w (it was given a key at boot: does the image have cloud-init, or systemd 252 or later?)", last)
	case s.record.Address == "", absent != nil:
		return fmt.Errorf("%w: the guest is running, but %w", errdefs.ErrNoAnswer, network.ErrNoLease)
	}
	return fmt.Errorf("%w: the guest is running, but SSH at %s did not accept a login (does its SSH server start at boot?)", errdefs.ErrNoAnswer, s.record.Address)
}

// DropCache removes the cache disk, so that no other machine gets it: the guest may have
// failed because of it. This machine keeps it open until it ends. DropCache does not
// remove a share, which other running machines may have, too.
func (s *Started) DropCache() error {
	if s.cache.Path == "" || s.CacheMode() != cache.Disk {
		return nil
	}
	if err := os.Remove(s.cache.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop the cache disk: %w", err)
	}
	return nil
}

// HasTools reports whether the machine has the disk of [Spec.Tools].
func (s *Started) HasTools() bool { return s.tools }

// CacheIsFresh reports whether no guest has written to the cache before this machine.
func (s *Started) CacheIsFresh() bool { return s.cache.Fresh }
