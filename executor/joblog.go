package executor

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"gitlab-sardine-executor/vm"
)

// A JobLog is what the author of a job reads: few lines, each for people. What
// only an administrator can use goes to slog.
type JobLog struct {
	mu sync.Mutex
	w  io.Writer
	// sections says that GitLab shows the log, which folds its sections.
	sections bool
}

// NewJobLog writes to w, which a stage's caller passes on to the job log.
func NewJobLog(w io.Writer) *JobLog { return &JobLog{w: w} }

// NewGitLabLog is a [JobLog] that GitLab shows: with sections that can be folded.
func NewGitLabLog(w io.Writer) *JobLog { return &JobLog{w: w, sections: true} }

// Section begins a part of the log that GitLab can fold, and of which it shows how
// long it took; end ends it. name consists of letters and underscores.
//
// Source: docs.gitlab.com, "Custom collapsible sections".
func (l *JobLog) Section(name, title string) (end func()) {
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
func (l *JobLog) Say(format string, args ...any) { l.line("", format, args...) }

// Warn writes one line that starts as GitLab Runner's own warnings do.
func (l *JobLog) Warn(format string, args ...any) { l.line("WARNING: ", format, args...) }

// Fail writes the last lines of a stage that failed: what the guest last said on
// its console, if it is about a guest; then, in one line, whose side the failure
// is on, what was tried, and what to do.
func (l *JobLog) Fail(err error) {
	if console := vm.ConsoleOf(err); console != "" {
		l.Say("The guest's console ended with:")
		for _, line := range strings.Split(console, "\n") {
			l.Say("    %s", line)
		}
	}
	l.line("ERROR: ", "%s (%s)", oneLine(err.Error()), Classify(err))
}

// Writer passes on what somebody else writes to the log.
func (l *JobLog) Writer() io.Writer { return logWriter{l} }

type logWriter struct{ l *JobLog }

func (w logWriter) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.w.Write(p)
}

func (l *JobLog) line(prefix, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "%s%s\n", prefix, fmt.Sprintf(format, args...))
}

// oneLine joins the lines of an error that several causes made.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// seconds is a duration as a log shows it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
