// Package console reads the console log of a guest, which can write anything there.
package console

import (
	"bytes"
	"io"
	"os"
)

const (
	// lastLines is the number of lines that [Tail] returns.
	lastLines = 12
	// scanMax bounds how many bytes of the console are read at a time: a guest can write
	// faster than they can be searched.
	scanMax = 1 << 20
)

// Tail returns the last lines of the log at path; empty if there are none. If the kernel has
// panicked, the first of them is its message, which a call trace may follow. Only printable
// text is returned.
func Tail(path string) string {
	f, err := os.Open(path)
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
	if first := len(lines) - lastLines; first > 0 {
		for _, line := range lines[:first] {
			if bytes.Contains(line, kernelPanic) {
				lines[first] = line
			}
		}
		lines = lines[first:]
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

// A PanicWatch follows the console of a guest and searches it for the panic message of a
// Linux kernel. Not every machine has the device (pvpanic) that reports a panic to the
// host, and a guest that reboots after a panic would otherwise do so until the deadline.
type PanicWatch struct {
	// Path of the log.
	Path string

	offset int64
}

// kernelPanic is the beginning of the message (panic() in kernel/panic.c of Linux).
var kernelPanic = []byte("Kernel panic - not syncing")

// Seen reports whether the console has shown a panic since the last call.
func (w *PanicWatch) Seen() bool {
	f, err := os.Open(w.Path)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false
	}
	if info.Size()-w.offset > scanMax {
		w.offset = info.Size() - scanMax
	}
	text, err := io.ReadAll(io.NewSectionReader(f, w.offset, scanMax))
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
