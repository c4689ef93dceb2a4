package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const (
	// consoleLines is the number of the console's last lines that an error has.
	consoleLines = 12
	// consoleScanMax bounds how many bytes of the console are read at a time: a guest can
	// write faster than they can be searched.
	consoleScanMax = 1 << 20
)

// withConsole adds the last lines of the guest's console to an error.
func withConsole(err error, jobDir string) error {
	tail := consoleTail(jobDir)
	if tail == "" {
		return err
	}
	return &consoleError{err: err, tail: tail}
}

// consoleError keeps the guest's text apart from the message: a log shows both, a one-line
// message only the latter.
type consoleError struct {
	err  error
	tail string
}

func (e *consoleError) Error() string { return e.err.Error() }
func (e *consoleError) Unwrap() error { return e.err }

// ConsoleOf returns the last lines of the console of the guest that err is about; empty if
// there are none.
func ConsoleOf(err error) string {
	var e *consoleError
	if errors.As(err, &e) {
		return e.tail
	}
	return ""
}

// consoleTail reads the end of the console log. A guest can write anything there: only
// printable text is returned.
func consoleTail(jobDir string) string {
	f, err := os.Open(filepath.Join(jobDir, ConsoleFile))
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

// A panicWatch follows the console of a guest and searches it for the panic message of a
// Linux kernel. Not every machine has the device (pvpanic) that reports a panic to the
// host, and a guest that reboots after a panic would otherwise do so until the deadline.
type panicWatch struct {
	path   string
	offset int64
}

// kernelPanic is the beginning of the message (panic() in kernel/panic.c of Linux).
var kernelPanic = []byte("Kernel panic - not syncing")

// seen reports whether the console has shown a panic since the last call.
func (w *panicWatch) seen() bool {
	f, err := os.Open(w.path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	if info.Size()-w.offset > consoleScanMax {
		w.offset = info.Size() - consoleScanMax
	}
	text, err := io.ReadAll(io.NewSectionReader(f, w.offset, consoleScanMax))
	if err != nil {
		return false
	}
	if bytes.Contains(text, kernelPanic) {
		return true
	}
	// The message may be incomplete.
	w.offset += max(int64(len(text)-len(kernelPanic)), 0)
	return false
}
