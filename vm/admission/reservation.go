package admission

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// reservations is a directory with a file for each machine that was admitted and that
// libvirt may not count yet. The name of the file is that of the machine.
//
// The process that starts the machine holds a lock on the file, so that the reservation
// ends with the process. When the machine runs, the process writes the time into the file
// and releases the lock: the reservation still counts for those who asked libvirt before.
type reservations string

// releasedMax is how long the file of a released reservation is kept. No observation of
// libvirt that is used is that old.
const releasedMax = 10 * time.Minute

// A reservation is a file that this process has locked.
type reservation struct{ file *os.File }

// note is the format of the file: the memory in bytes, and when the reservation was released
// (see uptime), or 0.
const note = "%d %d\n"

// add reserves room for a machine. The caller holds the lock of the queue.
func (dir reservations) add(name string, memory uint64) (_ *reservation, err error) {
	if err := errors.Join(os.MkdirAll(string(dir), 0o700), dir.clear()); err != nil {
		return nil, fmt.Errorf("reserve room for %s: %w", name, err)
	}
	file, err := os.OpenFile(filepath.Join(string(dir), name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("reserve room for %s: %w", name, err)
	}
	r := &reservation{file}
	err = unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, wholeFile(unix.F_WRLCK))
	if err == nil {
		err = r.write(memory, 0)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("reserve room for %s: %w", name, err)
	}
	return r, nil
}

// wholeFile describes a lock on the whole file. Such locks (F_OFD_SETLK of fcntl(2)) can be
// tested without taking them.
func wholeFile(kind int16) *unix.Flock_t { return &unix.Flock_t{Type: kind, Whence: io.SeekStart} }

func (r *reservation) write(memory, released uint64) error {
	text := fmt.Sprintf(note, memory, released)
	if _, err := r.file.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return r.file.Truncate(int64(len(text)))
}

// release ends the reservation. It may be called again.
func (r *reservation) release() error {
	memory, _, err := readNote(r.file)
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	now, timeErr := uptime()
	if err = errors.Join(err, timeErr); err == nil {
		err = r.write(memory, now)
	}
	if err = errors.Join(err, r.file.Close()); err != nil {
		return fmt.Errorf("release the reservation of room: %w", err)
	}
	return nil
}

// since returns the memory of the machines, by name, that libvirt may not have known at that
// time: those that are starting, and those that were released later.
func (dir reservations) since(at uint64) (map[string]uint64, error) {
	found := make(map[string]uint64)
	err := dir.each(func(name string, e entry) error {
		if e.held || e.released > at {
			found[name] = e.memory
		}
		return nil
	})
	return found, err
}

// clear removes the files of processes that died, and of reservations that were released
// long ago, or before the host booted. The caller holds the lock of the queue.
func (dir reservations) clear() error {
	now, err := uptime()
	if err != nil {
		return err
	}
	return dir.each(func(name string, e entry) error {
		if e.held || e.released <= now && e.released+uint64(releasedMax) > now {
			return nil
		}
		return os.Remove(filepath.Join(string(dir), name))
	})
}

// An entry is the content of a reservation's file.
type entry struct {
	held             bool // by a process
	memory, released uint64
}

// each calls do for all files.
func (dir reservations) each(do func(name string, e entry) error) error {
	files, err := os.ReadDir(string(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for machines that are starting: %w", err)
	}
	for _, file := range files {
		e, err := dir.read(file.Name())
		if err == nil {
			err = do(file.Name(), e)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for machines that are starting: %w", err)
		}
	}
	return nil
}

func (dir reservations) read(name string) (e entry, err error) {
	file, err := os.Open(filepath.Join(string(dir), name))
	if err != nil {
		return e, err
	}
	defer file.Close()
	lock := wholeFile(unix.F_WRLCK)
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, lock); err != nil {
		return e, err
	}
	e.held = lock.Type != unix.F_UNLCK
	e.memory, e.released, _ = readNote(file) // a process may have died while it wrote
	return e, nil
}

func readNote(file *os.File) (memory, released uint64, err error) {
	text := make([]byte, 64)
	n, err := file.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, err
	}
	_, err = fmt.Sscanf(string(text[:n]), note, &memory, &released)
	return memory, released, err
}

// uptime is the time since the boot of the host, in nanoseconds. All processes see the same
// clock, and it cannot be set.
func uptime() (uint64, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return uint64(now.Nano()), nil
}
