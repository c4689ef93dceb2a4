package vm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
)

const (
	// consoleLines is how many of the console's last lines an error shows.
	consoleLines = 12
	// consoleScanMax bounds what is read of the console at a time: a guest can
	// write faster than anybody reads.
	consoleScanMax = 1 << 20
)

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

// A panicWatch reads what a guest writes to its console, as it comes, and looks
// for the last words of a Linux kernel. Not every machine has the device
// (pvpanic) by which a kernel could tell the host, and one that restarts when it
// panics would otherwise do that until the deadline.
type panicWatch struct {
	path   string
	offset int64
}

// kernelPanic is how the message begins (panic() in Linux' kernel/panic.c).
var kernelPanic = []byte("Kernel panic - not syncing")

// seen says whether the console has shown a panic since it was asked last.
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
	// The message may be half written.
	w.offset += max(int64(len(text)-len(kernelPanic)), 0)
	return false
}
