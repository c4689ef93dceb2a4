package executor

import (
	"fmt"
	"sync"
	"time"

	"github.com/docker/go-units"

	"gitlab-sardine-executor/oci"
)

// progressInterval is the time between two lines about a transfer in a job log.
const progressInterval = 5 * time.Second

// pullProgress tells the job log how a pull goes on: a line every few seconds
// over all transfers together, and one at the end.
type pullProgress struct {
	log *JobLog

	mu      sync.Mutex
	active  int
	total   int64
	moved   int64
	began   time.Time
	spoken  time.Time
	unsized bool
}

func (l *JobLog) pullProgress() oci.Progress { return &pullProgress{log: l} }

// Waiting says what the pull waits for.
func (p *pullProgress) Waiting(reason string) { p.log.Say("Waiting: %s", reason) }

// Start begins to count a transfer.
func (p *pullProgress) Start(_ string, size int64) oci.Transfer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
		p.spoken = p.began
	}
	p.active++
	p.unsized = p.unsized || size < 0
	p.total += max(size, 0)
	return (*pullTransfer)(p)
}

type pullTransfer pullProgress

// Add counts bytes.
func (t *pullTransfer) Add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moved += n
	if now := time.Now(); now.Sub(t.spoken) >= progressInterval {
		t.spoken = now
		t.log.Say("Pulling: %s", (*pullProgress)(t).line(now))
	}
}

// Done ends a transfer.
func (t *pullTransfer) Done(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.active--
	if t.active == 0 && err == nil {
		now := time.Now()
		t.log.Say("Pulled %s in %s", units.BytesSize(float64(t.moved)), seconds(now.Sub(t.began)))
	}
}

func (p *pullProgress) line(now time.Time) string {
	elapsed := now.Sub(p.began).Seconds()
	rate := float64(p.moved) / max(elapsed, 0.001)
	text := fmt.Sprintf("%s, %s/s", units.BytesSize(float64(p.moved)), units.BytesSize(rate))
	if p.unsized || p.total <= p.moved {
		return text
	}
	left := time.Duration(float64(p.total-p.moved) / max(rate, 1) * float64(time.Second))
	return fmt.Sprintf("%s of %s, %s/s, %s left", units.BytesSize(float64(p.moved)), units.BytesSize(float64(p.total)),
		units.BytesSize(rate), left.Round(time.Second))
}
