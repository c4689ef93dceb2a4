package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/snapshot/savefile"
	"gitlab-sardine-executor/vm/virt"
)

// restoreTimeout bounds the restore, in which libvirt reads the memory from the disk. It is a
// variable for tests.
var restoreTimeout = 60 * time.Second

const (
	// pipePoll is how often feed checks whether libvirt has read everything.
	pipePoll = 2 * time.Millisecond
	// pipeGrace is longer than libvirt takes between a check of the path and its open.
	pipeGrace = 50 * time.Millisecond
	// pipeSize is the capacity of the pipe, in bytes: the maximum for unprivileged processes
	// (fs.pipe-max-size, pipe(7)).
	pipeSize = 1 << 20
)

// Restore starts the domain from the memory of the snapshot. libvirt reads it from a pipe at
// path: the header of the file differs for each clone, and the memory, which is as large
// as the guest, is not copied. The error is an [ErrNone] if the snapshot may be its cause.
func (s *Saved) Restore(ctx context.Context, h *virt.Host, path string) (*virt.Domain, error) {
	d := s.Domain
	doc, err := d.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write the domain of %s: %w", d.Name, err)
	}
	pipe, err := makePipe(path)
	if err != nil {
		return nil, fmt.Errorf("create a pipe for libvirt: %w", err)
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
		// libvirt may be about to open the pipe. Without a writer it would wait forever.
		err = errors.Join(err, os.Remove(path))
		time.Sleep(pipeGrace)
	}
	stop()
	if fedErr := <-fed; err != nil {
		if errors.Is(err, errdefs.ErrDisconnected) || ctx.Err() != nil {
			return nil, err
		}
		return nil, none("%w", errors.Join(err, fedErr))
	}
	dom, err := h.Domain(ctx, d.Name)
	if errors.Is(err, errdefs.ErrNoDomain) {
		return nil, none("the machine stopped as soon as it resumed")
	}
	return dom, err
}

// makePipe creates a named pipe and opens both ends, so that readers never block on open.
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

// feed writes head and memory to the pipe. It closes the pipe when everything has been read,
// or when ctx ends.
func feed(ctx context.Context, pipe *os.File, head *savefile.Head, memory io.Reader) error {
	defer pipe.Close()
	// Writes end with ctx, also if the reader has stopped.
	defer context.AfterFunc(ctx, func() { pipe.SetDeadline(time.Now()) })()
	_, err := head.WriteTo(pipe)
	if err == nil {
		_, err = io.CopyBuffer(onlyWriter{pipe}, memory, make([]byte, pipeSize))
	}
	if err != nil {
		return fmt.Errorf("write the memory for libvirt: %w", err)
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

// pipeHolds returns the number of bytes in a pipe.
func pipeHolds(pipe *os.File) int {
	n := 0
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// widen enlarges the pipe, for speed. It does not use [os.File.Fd], which would disable
// deadlines.
func widen(pipe *os.File) {
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}

// onlyWriter hides ReadFrom, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }
