// Package joblog writes the log that the author of a job reads, and shows transfers.
package joblog

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
)

// A Log is what the author of a job reads: few lines, in sentences. Details for the
// administrator go to slog.
type Log struct {
	mu sync.Mutex
	w  io.Writer
	// sections says that GitLab shows the log and folds its sections.
	sections bool
}

// New returns a log that writes to w, without sections.
func New(w io.Writer) *Log { return &Log{w: w} }

// NewGitLab returns a log with sections that GitLab folds.
func NewGitLab(w io.Writer) *Log { return &Log{w: w, sections: true} }

// Section begins a section, which GitLab can fold and shows with its duration; end
// ends it. name consists of letters and underscores.
//
// Source: docs.gitlab.com, "Custom collapsible sections".
func (l *Log) Section(name, title string) (end func()) {
	if !l.sections {
		l.Say("%s", title)
		return func() {}
	}
	mark := func(what, title string) {
		l.Say("\x1b[0Ksection_%s:%d:%s\r\x1b[0K%s", what, time.Now().Unix(), name, title)
	}
	mark("start", title)
	return sync.OnceFunc(func() { mark("end", "") })
}

// Say writes one line.
func (l *Log) Say(format string, args ...any) { l.line("", format, args...) }

// Warn writes one line that starts as GitLab Runner's own warnings do.
func (l *Log) Warn(format string, args ...any) { l.line("WARNING: ", format, args...) }

// Error writes one line that starts as GitLab Runner's own errors do.
func (l *Log) Error(format string, args ...any) { l.line("ERROR: ", format, args...) }

// Writer returns a writer to the log, for the output of other programs.
func (l *Log) Writer() io.Writer { return logWriter{l} }

type logWriter struct{ l *Log }

func (w logWriter) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.w.Write(p)
}

func (l *Log) line(prefix, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "%s%s\n", prefix, fmt.Sprintf(format, args...))
}

// OneLine joins lines, such as those of a joined error.
func OneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// printableMax bounds the length of a text, in characters.
const printableMax = 100

// printable returns the text without characters that do not print, and shortened.
func printable(text string) string {
	runes := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return -1
	}, text))
	if len(runes) > printableMax {
		return string(runes[:printableMax]) + "…"
	}
	return string(runes)
}

// listMax is the number of texts that a list shows.
const listMax = 5

// List joins texts of a job's author for use in a line; empty if there are none.
func List(texts []string) string {
	var shown []string
	for _, text := range texts[:min(len(texts), listMax)] {
		shown = append(shown, printable(text))
	}
	if more := len(texts) - listMax; more > 0 {
		shown = append(shown, fmt.Sprintf("%d more", more))
	}
	return strings.Join(shown, ", ")
}

// Seconds formats a duration for a log.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
