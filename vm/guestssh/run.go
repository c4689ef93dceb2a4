package guestssh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	// drainTimeout bounds the wait for more output after the command has ended. sshd keeps
	// a session open while any process holds its pipes, so a daemon in the background
	// would keep a finished job waiting.
	drainTimeout = 10 * time.Second
	// drainIdle is the time without output after which the wait ends. It is longer than a
	// busy guest takes to send what is in its pipes.
	drainIdle = time.Second
	// openTimeout bounds the time that a server takes to start a command after login. It
	// may wait for other services of a guest that is still booting.
	openTimeout = 5 * time.Minute
	// killTimeout bounds the time that a cancelled command takes to end after SIGTERM.
	killTimeout = 500 * time.Millisecond
)

// A Keepalive detects a guest that has vanished: it sends a request every Interval, and
// reports the guest as lost if no reply comes within Timeout.
type Keepalive struct {
	Interval, Timeout time.Duration
	// Still reports whether the whole guest stands still; nil if that is not known. Nothing
	// is sent to such a guest until Timeout is over: passt resets a connection with data
	// that the guest has not acknowledged for 8 s (TCP_MAX_RETRANS in its tcp.c).
	Still func(context.Context) bool
}

// defaultKeepalive reports a guest as lost after 60 to 80 s.
var defaultKeepalive = Keepalive{Interval: 10 * time.Second, Timeout: time.Minute}

// A Command is a command to run in a guest. As with ssh, the user's login shell runs it,
// without a terminal.
type Command struct {
	Line   string
	Stdin  io.Reader // nil: empty
	Stdout io.Writer
	Stderr io.Writer
	// Keepalive detects a lost guest. Zero times report it after 60 to 80 s.
	Keepalive Keepalive

	drainIdle, drainTimeout time.Duration // 0: the constants
}

// Run runs one command and returns its exit status; 128+n if signal n ended it, as in a
// shell. When ctx ends, Run sends SIGTERM to the command and returns. The error is
// [ErrLost] if the connection broke.
//
// The Session of x/crypto/ssh reports the exit status when the channel is closed, which a
// daemon in the background can delay forever. Run therefore uses the channel directly.
func (c *Client) Run(ctx context.Context, cmd Command) (int, error) {
	client := c.conn
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lost := cmd.Keepalive.orDefault().watch(ctx, client)
	channel, exited, err := openCommand(ctx, client, cmd.Line, lost)
	if err != nil {
		return 0, err
	}
	defer channel.Close()
	go func() {
		if cmd.Stdin != nil {
			io.Copy(channel, cmd.Stdin) // fails if the command does not read all of its input
		}
		channel.CloseWrite()
	}()
	output := copyOutput(channel, cmd)

	select {
	case e := <-exited:
		output.drain(ctx, cmp.Or(cmd.drainIdle, drainIdle), cmp.Or(cmd.drainTimeout, drainTimeout))
		if err := output.err(); err != nil {
			return 0, err
		}
		return e.status, e.err
	case err := <-lost:
		client.Close() // channel.Close could wait for a server that does not read
		return 0, err
	case <-ctx.Done():
		go channel.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{"TERM"}))
		select {
		case <-exited:
		case <-time.After(killTimeout):
			client.Close()
		}
		return 0, context.Cause(ctx)
	}
}

// openCommand starts a command. A server may accept the login and then send nothing: the
// wait ends when ctx ends, when the guest is lost, and after openTimeout. The connection
// is closed then.
func openCommand(ctx context.Context, client *ssh.Client, line string, lost <-chan error) (ssh.Channel, <-chan exit, error) {
	var channel ssh.Channel
	opened, exited := make(chan error, 1), make(chan exit, 1)
	go func() {
		var requests <-chan *ssh.Request
		var err error
		if channel, requests, err = client.OpenChannel("session", nil); err != nil {
			opened <- fmt.Errorf("%w: open a session: %w", ErrLost, err)
			return
		}
		go watchExit(requests, exited)
		ok, err := channel.SendRequest("exec", true, ssh.Marshal(struct{ Line string }{line}))
		if err != nil {
			err = fmt.Errorf("%w: run %q: %w", ErrLost, line, err)
		} else if !ok {
			err = fmt.Errorf("the guest's SSH server refuses to run %q", line)
		}
		opened <- err
	}()
	var err error
	select {
	case err = <-opened:
		if err == nil {
			return channel, exited, nil
		}
		if channel != nil {
			channel.Close()
		}
		return nil, nil, err
	case err = <-lost:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-time.After(openTimeout):
		err = fmt.Errorf("%w: its SSH server did not start %q within %s", ErrLost, line, openTimeout)
	}
	client.Close()
	return nil, nil, err
}

type exit struct {
	status int
	err    error
}

// watchExit reads the requests that a server sends on the channel of a session (RFC 4254,
// section 6.10) and reports how the command ended.
func watchExit(requests <-chan *ssh.Request, exited chan<- exit) {
	for r := range requests {
		switch r.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if err := ssh.Unmarshal(r.Payload, &m); err == nil {
				exited <- exit{status: int(m.Status)}
				ssh.DiscardRequests(requests)
				return
			}
		case "exit-signal":
			var m struct {
				Name          string
				Core          bool
				Message, Lang string
			}
			if err := ssh.Unmarshal(r.Payload, &m); err == nil {
				exited <- exit{status: 128 + signals[m.Name]}
				ssh.DiscardRequests(requests)
				return
			}
		}
		if r.WantReply {
			r.Reply(false, nil)
		}
	}
	exited <- exit{err: fmt.Errorf("%w: it ended without an exit status", ErrLost)}
}

// signals maps the signal names of RFC 4254, section 6.10, to numbers. All but the last
// two have the same number on Linux, macOS and the BSDs. A server sends other signals by
// name, if at all: the status is 128 then.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9,
	"SEGV": 11, "PIPE": 13, "ALRM": 14, "TERM": 15,
	"USR1": 10, "USR2": 12,
}

// output copies both streams of a command.
type output struct {
	done    chan struct{}
	writing atomic.Int32 // streams that wait for the reader on our side
	moved   atomic.Int64 // time of the last output, in Unix nanoseconds
	failed  atomic.Pointer[error]
}

func copyOutput(channel ssh.Channel, cmd Command) *output {
	o := &output{done: make(chan struct{})}
	var both sync.WaitGroup
	for _, stream := range []struct {
		to   io.Writer
		from io.Reader
	}{{cmd.Stdout, channel}, {cmd.Stderr, channel.Stderr()}} {
		if stream.to == nil {
			stream.to = io.Discard
		}
		both.Go(func() { o.copy(stream.to, stream.from) })
	}
	go func() { both.Wait(); close(o.done) }()
	return o
}

func (o *output) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			o.writing.Add(1)
			_, werr := to.Write(buf[:n])
			o.moved.Store(time.Now().UnixNano())
			o.writing.Add(-1)
			if werr != nil {
				werr = fmt.Errorf("write the output of the guest: %w", werr)
				o.failed.CompareAndSwap(nil, &werr)
				to = io.Discard // the guest must not block on us
			}
		}
		if err != nil {
			return
		}
	}
}

func (o *output) err() error {
	if failed := o.failed.Load(); failed != nil {
		return *failed
	}
	return nil
}

// drain waits for the remaining output of a command that has ended: until the streams end,
// until no output has come for the time idle although our side was ready to read, or until
// timeout.
func (o *output) drain(ctx context.Context, idle, timeout time.Duration) {
	began := time.Now()
	tick := time.NewTicker(idle / 10)
	defer tick.Stop()
	for {
		select {
		case <-o.done:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if o.writing.Load() > 0 {
			continue
		}
		last := time.Unix(0, o.moved.Load())
		if last.Before(began) {
			last = began
		}
		if time.Since(last) > idle || time.Since(began) > timeout {
			return
		}
	}
}

func (k Keepalive) orDefault() Keepalive {
	k.Interval = cmp.Or(k.Interval, defaultKeepalive.Interval)
	k.Timeout = cmp.Or(k.Timeout, defaultKeepalive.Timeout)
	return k
}

// watch sends keepalive requests and reports when the server does not reply.
func (k Keepalive) watch(ctx context.Context, client *ssh.Client) <-chan error {
	lost := make(chan error, 1)
	go func() {
		if err := k.run(ctx, client); err != nil {
			lost <- err
		}
	}()
	return lost
}

// errUnanswered: no reply came in time.
var errUnanswered = errors.New("no reply")

// run returns nil when ctx ends.
func (k Keepalive) run(ctx context.Context, client *ssh.Client) error {
	answered := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(k.Interval):
		}
		still, wait := k.Still != nil && k.Still(ctx), k.Timeout
		if still && time.Since(answered) < k.Timeout {
			continue
		}
		if still { // the last attempt
			wait = k.Interval
		}
		err := ask(ctx, client, wait)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			answered = time.Now()
		case still || errors.Is(err, errUnanswered):
			return fmt.Errorf("%w: %w for %.0f s", ErrLost, ErrSilent, time.Since(answered).Seconds())
		default:
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
}

// ask sends one keepalive request and waits for the reply.
func ask(ctx context.Context, client *ssh.Client, wait time.Duration) error {
	replied := make(chan error, 1)
	go func() {
		_, _, err := client.SendRequest("keepalive@openssh.com", true, nil)
		replied <- err
	}()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-replied:
		return err
	case <-time.After(wait):
		return errUnanswered
	}
}
