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

// Shell runs the user's login shell interactively and returns its exit status. The shell
// gets a terminal if stdin is one.
func (c *Client) Shell(ctx context.Context, stdin *os.File, stdout, stderr io.Writer) (int, error) {
	session, err := c.conn.NewSession()
	if err != nil {
		return 0, fmt.Errorf("%w: open a session: %w", ErrLost, err)
	}
	defer session.Close()
	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, stderr
	if fd := int(stdin.Fd()); term.IsTerminal(fd) {
		restore, err := attachTerminal(ctx, session, fd)
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

// attachTerminal connects the terminal to the guest: it is set to raw mode here, and the
// guest gets a terminal of the same size, which follows changes.
func attachTerminal(ctx context.Context, session *ssh.Session, fd int) (restore func(), err error) {
	width, height, err := term.GetSize(fd)
	if err != nil {
		return nil, fmt.Errorf("read the size of the terminal: %w", err)
	}
	kind := os.Getenv("TERM")
	if kind == "" {
		kind = "vt100"
	}
	if err := session.RequestPty(kind, height, width, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("request a terminal from the guest: %w", err)
	}
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
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
