package joblog

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"gitlab-sardine-executor/oci"
)

// progressInterval is the time between two lines about transfers in a log.
const progressInterval = 5 * time.Second

// Progress shows transfers to a person. Close it when they have ended, with or without
// success, before anything else is written to the same place.
type Progress interface {
	oci.Progress
	oci.Estimator
	Close()
}

// NewProgress shows transfers on w: with bars if w is a terminal, else with a line
// every few seconds. what is the activity: "Pulling", "Exporting".
func NewProgress(w io.Writer, what string) Progress {
	if f, ok := w.(*os.File); ok {
		// Some services have a terminal without a width, where bars cannot be drawn.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return newBars(w, what)
		}
	}
	return newLines(New(w), what, time.Now)
}

// NoProgress shows nothing.
func NoProgress() Progress { return noProgress{} }

type noProgress struct{}

func (noProgress) Waiting(string)                   {}
func (noProgress) Expect(int64)                     {}
func (noProgress) Start(string, int64) oci.Transfer { return noProgress{} }
func (noProgress) Add(int64)                        {}
func (noProgress) Done(error)                       {}
func (noProgress) Close()                           {}

// Progress shows transfers in the log; what is the activity: "Pulling".
func (l *Log) Progress(what string) *Lines { return newLines(l, what, time.Now) }

// Lines shows transfers in a log: a line every few seconds with the sum of all, and one
// at the end if there was any before.
type Lines struct {
	log  *Log
	what string
	now  func() time.Time

	mu     sync.Mutex
	tally  tally
	active int
	began  time.Time
	spoken time.Time
	spoke  bool // a line was written
}

func newLines(log *Log, what string, now func() time.Time) *Lines {
	return &Lines{log: log, what: what, now: now}
}

// Moved returns the number of bytes that all transfers have moved.
func (p *Lines) Moved() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tally.moved
}

// Waiting writes a line with the reason for a wait.
func (p *Lines) Waiting(reason string) { p.log.Say("Waiting: %s", reason) }

// Expect adds to the number of bytes to come.
func (p *Lines) Expect(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally.expect(size)
}

// Start adds a transfer.
func (p *Lines) Start(_ string, size int64) oci.Transfer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = p.now()
		p.spoken = p.began
	}
	p.active++
	p.tally.start(size)
	return &lineTransfer{p: p, size: size}
}

// Close does nothing: each line is complete.
func (p *Lines) Close() {}

// A lineTransfer is one of the transfers of Lines.
type lineTransfer struct {
	p           *Lines
	size, moved int64
}

// Add counts bytes, and writes a line if the interval is over.
func (t *lineTransfer) Add(n int64) {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	t.moved += n
	p.tally.moved += n
	if now := p.now(); now.Sub(p.spoken) >= progressInterval {
		p.spoken, p.spoke = now, true
		p.log.Say("%s: %s", p.what, p.tally.line(now.Sub(p.began)))
	}
}

// Done ends a transfer. The bytes of a failed one do not count: a retry moves them
// again.
func (t *lineTransfer) Done(err error) {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active--
	if err != nil {
		p.tally.drop(t.size, t.moved)
		return
	}
	if p.active == 0 && p.tally.complete() && p.spoke {
		p.spoke = false
		p.log.Say("%s: %s, done in %s", p.what, units.BytesSize(float64(p.tally.moved)), Seconds(p.now().Sub(p.began)))
	}
}

// A tally adds up transfers, in bytes.
type tally struct {
	moved    int64
	started  int64 // sizes of the started transfers
	expected int64 // sizes of all transfers; 0 if not known
	unsized  bool  // the size of some transfer is not known
}

func (t *tally) expect(size int64) { t.expected += max(size, 0) }

func (t *tally) start(size int64) {
	t.unsized = t.unsized || size < 0
	t.started += max(size, 0)
}

// drop subtracts a failed transfer.
func (t *tally) drop(size, moved int64) {
	t.started -= max(size, 0)
	t.moved -= moved
}

// total is the number of bytes to move; without [Lines.Expect] it grows with each
// transfer.
func (t *tally) total() int64 { return max(t.started, t.expected) }

func (t *tally) complete() bool { return t.unsized || t.moved >= t.total() }

// line is "120MiB of 377MiB, 24MiB/s, 11s left".
func (t *tally) line(elapsed time.Duration) string {
	rate := float64(t.moved) / max(elapsed.Seconds(), 0.001)
	if t.complete() {
		return fmt.Sprintf("%s, %s/s", units.BytesSize(float64(t.moved)), units.BytesSize(rate))
	}
	left := time.Duration(float64(t.total()-t.moved) / max(rate, 1) * float64(time.Second))
	return fmt.Sprintf("%s of %s, %s/s, %s left", units.BytesSize(float64(t.moved)), units.BytesSize(float64(t.total())),
		units.BytesSize(rate), left.Round(time.Second))
}
