package executor

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// A JobLog is what the author of a job reads: few lines, each for people. What
// only an administrator can use goes to slog.
type JobLog struct {
	mu sync.Mutex
	w  io.Writer
}

// NewJobLog writes to w, which a stage's caller passes on to the job log.
func NewJobLog(w io.Writer) *JobLog { return &JobLog{w: w} }

// Say writes one line.
func (l *JobLog) Say(format string, args ...any) { l.line("", format, args...) }

// Warn writes one line that starts as GitLab Runner's own warnings do.
func (l *JobLog) Warn(format string, args ...any) { l.line("WARNING: ", format, args...) }

// Fail writes the last lines of a stage that failed: what the guest last said on
// its console, if it is about a guest, then what went wrong.
func (l *JobLog) Fail(err error, console string) {
	if console != "" {
		l.Say("The guest's console ended with:")
		for _, line := range strings.Split(console, "\n") {
			l.Say("    %s", line)
		}
	}
	l.line("ERROR: ", "%s", oneLine(err.Error()))
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
