package guestssh

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

// Shell is a person's login to the guest: the login shell of its user on a
// terminal, until the person leaves. It returns the shell's exit status. Where
// stdin is no terminal the shell has none, either.
func (c *Client) Shell(ctx context.Context, stdin *os.File, stdout, stderr io.Writer) (int, error) {
	session, err := c.conn.NewSession()
	if err != nil {
		return 0, fmt.Errorf("%w: open a session: %w", ErrLost, err)
	}
	defer session.Close()
	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, stderr
	if fd := int(stdin.Fd()); term.IsTerminal(fd) {
		restore, err := ownTerminal(ctx, session, fd)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	if err := session.Shell(); err != nil {
		return 0, fmt.Errorf("start a shell: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	err = session.Wait()
	switch e := err.(type) {
	case nil:
		return 0, nil
	case *ssh.ExitError:
		return e.ExitStatus(), nil
	}
	return 0, fmt.Errorf("%w: %w", ErrLost, err)
}

// ownTerminal hands the terminal over to the guest: raw here, a terminal of the
// same size there, also when that changes.
func ownTerminal(ctx context.Context, session *ssh.Session, fd int) (restore func(), err error) {
	width, height, err := term.GetSize(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the size of the terminal: %w", err)
	}
	kind := os.Getenv("TERM")
	if kind == "" {
		kind = "vt100"
	}
	if err := session.RequestPty(kind, height, width, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("ask the guest for a terminal: %w", err)
	}
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("make the terminal raw: %w", err)
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			select {
			case <-resized:
				if width, height, err := term.GetSize(fd); err == nil {
					session.WindowChange(height, width)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		signal.Stop(resized)
		term.Restore(fd, before)
	}, nil
}
