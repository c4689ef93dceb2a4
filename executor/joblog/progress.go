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

// Progress shows a person how transfers go on. Close it when they have ended,
// well or not, and before anything else is written to the same place.
type Progress interface {
	oci.Progress
	oci.Estimator
	Close()
}

// NewProgress shows transfers on w: by bars if w is a terminal, else by a line
// every few seconds. what is what happens: "Pulling", "Exporting".
func NewProgress(w io.Writer, what string) Progress {
	if f, ok := w.(*os.File); ok {
		// A terminal without a width, as some services have, has no room for bars.
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return newBars(w, what)
		}
	}
	return newLines(New(w), what, time.Now)
}

// NoProgress is that of people who want to hear nothing.
func NoProgress() Progress { return noProgress{} }

type noProgress struct{}

func (noProgress) Waiting(string)                   {}
func (noProgress) Expect(int64)                     {}
func (noProgress) Start(string, int64) oci.Transfer { return noProgress{} }
func (noProgress) Add(int64)                        {}
func (noProgress) Done(error)                       {}
func (noProgress) Close()                           {}

// Progress writes to the log how transfers go on; what is what happens: "Pulling".
func (l *Log) Progress(what string) *Lines { return newLines(l, what, time.Now) }

// Lines tells a log how transfers go on: a line every few seconds over
// all of them together, and one at the end if there was time for any other.
type Lines struct {
	log  *Log
	what string
	now  func() time.Time

	mu     sync.Mutex
	tally  tally
	active int
	began  time.Time
	spoken time.Time
	spoke  bool // since the transfers began
}

func newLines(log *Log, what string, now func() time.Time) *Lines {
	return &Lines{log: log, what: what, now: now}
}

// Moved is how many bytes all transfers together have moved so far.
func (p *Lines) Moved() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tally.moved
}

// Waiting says what the work waits for.
func (p *Lines) Waiting(reason string) { p.log.Say("Waiting: %s", reason) }

// Expect notes how much is to come.
func (p *Lines) Expect(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally.expect(size)
}

// Start begins to count a transfer.
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

// A lineTransfer is one of the transfers that Lines adds up.
type lineTransfer struct {
	p           *Lines
	size, moved int64
}

// Add counts bytes, and says a line if it is time.
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

// Done ends a transfer. What a failed one moved is moved again if it is tried
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
	started  int64 // sizes of the transfers that have begun
	expected int64 // sizes of all that will; 0 if nobody said
	unsized  bool  // some size is not known
}

func (t *tally) expect(size int64) { t.expected += max(size, 0) }

func (t *tally) start(size int64) {
	t.unsized = t.unsized || size < 0
	t.started += max(size, 0)
}

// drop takes back a transfer that failed.
func (t *tally) drop(size, moved int64) {
	t.started -= max(size, 0)
	t.moved -= moved
}

// total is how much there is to move; it grows while nobody said how much is to
// come.
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
