package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/vm/snapshot/savefile"
	"gitlab-sardine-executor/vm/virt"
)

// restoreTimeout bounds how long libvirt may take to restore a machine; it reads the
// memory at the speed of the disk. It is a variable for tests.
var restoreTimeout = 60 * time.Second

const (
	// pipePoll is how often we look whether libvirt has read all.
	pipePoll = 2 * time.Millisecond
	// pipeGrace is more than libvirt needs between finding the pipe and opening it.
	pipeGrace = 50 * time.Millisecond
	// pipeSize is what a pipe may hold, in bytes: all that an unprivileged process may
	// ask for (fs.pipe-max-size, pipe(7)).
	pipeSize = 1 << 20
)

// Restore starts the domain from the memory of the snapshot. libvirt is given a pipe at
// path instead of a file, so that the memory, which is as large as the guest, is not
// copied for each machine to have another name in its head. The error is an [ErrNone] if
// the snapshot may be the cause.
func (s *Saved) Restore(ctx context.Context, h *virt.Host, path string) (*virt.Domain, error) {
	d := s.Domain
	doc, err := d.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write the domain of %s: %w", d.Name, err)
	}
	pipe, err := makePipe(path)
	if err != nil {
		return nil, fmt.Errorf("make a pipe for libvirt: %w", err)
	}
	feeding, stop := context.WithCancel(ctx)
	fed := make(chan error, 1)
	go func() {
		fed <- feed(feeding, pipe, &savefile.Head{XML: doc, Cookie: s.head.Cookie, Running: true}, s.memory)
	}()
	restoring, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	err = h.Restore(restoring, d.Name, path)
	if restoring.Err() != nil {
		// libvirt may be about to open it, and would wait for ever if we were gone then.
		err = errors.Join(err, os.Remove(path))
		time.Sleep(pipeGrace)
	}
	stop()
	if fedErr := <-fed; err != nil {
		if errors.Is(err, virt.ErrDisconnected) || ctx.Err() != nil {
			return nil, err
		}
		return nil, none("%w", errors.Join(err, fedErr))
	}
	dom, err := h.Domain(ctx, d.Name)
	if errors.Is(err, virt.ErrNoDomain) {
		return nil, none("the machine ended as soon as it went on")
	}
	return dom, err
}

// makePipe makes a named pipe and opens both of its ends: whoever opens it to read does
// not have to wait for us.
func makePipe(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, err
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	widen(pipe)
	return pipe, nil
}

// feed writes head and memory into the pipe, and closes it when all of it was read or
// ctx ends.
func feed(ctx context.Context, pipe *os.File, head *savefile.Head, memory io.Reader) error {
	defer pipe.Close()
	// Without a reader that goes on, a write ends when ctx does.
	defer context.AfterFunc(ctx, func() { pipe.SetDeadline(time.Now()) })()
	_, err := head.WriteTo(pipe)
	if err == nil {
		_, err = io.CopyBuffer(onlyWriter{pipe}, memory, make([]byte, pipeSize))
	}
	if err != nil {
		return fmt.Errorf("give libvirt the memory: %w", err)
	}
	for pipeHolds(pipe) > 0 {
		select {
		case <-time.After(pipePoll):
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// pipeHolds is how many bytes are in a pipe.
func pipeHolds(pipe *os.File) int {
	n := 0
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// widen makes a pipe hold more, for speed alone. ([os.File.Fd] would make it
// one that knows no deadlines.)
func widen(pipe *os.File) {
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// onlyWriter keeps io.CopyBuffer to its buffer.
type onlyWriter struct{ io.Writer }
