package distribution

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
)

// MinRate is the least throughput that counts as progress, in bytes per second:
// dnf's minrate. At that rate a gibibyte takes 12 days.
const MinRate = 1000

// A StallError says that a registry sent too little for too long. Another try at
// once would take as long again.
type StallError struct {
	// Place that was asked, as host:port or host.
	Place string
	// Got is the number of bytes that came within Window, or that went there.
	Got    int64
	Window time.Duration
	// Sending: a push, whose bytes the registry does not take.
	Sending bool
}

func (e *StallError) Error() string {
	verb := "sent"
	if e.Sending {
		verb = "took"
	}
	return fmt.Sprintf("%s %s %s in %s (pull_stall_timeout): gave up", e.Place, verb, units.BytesSize(float64(e.Got)), seconds(e.Window))
}

// seconds writes a duration as people do: 60 s.
func seconds(d time.Duration) string {
	if d >= time.Second && d%time.Second == 0 {
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return d.String()
}

// A meter ends the requests of a client that together make no progress. Time
// counts while at least one of them waits for the network: neither the time that
// a reader takes to unpack, nor the pause before another try.
type meter struct {
	window time.Duration
	floor  int64 // bytes that are progress within the window

	mu      sync.Mutex
	waiting map[*wait]struct{}
	since   time.Time     // up to here, waited is complete
	waited  time.Duration // since the last progress worth the name
	got     int64         // bytes since then
	timer   *time.Timer   // nil unless armed
}

// A wait is one request, or one body, that may be waited for.
type wait struct {
	place   string
	sending bool
	commits bool // has a deadline, and is not waited for
	cancel  func(error)
	// deadline ends a commit; nil before that.
	deadline atomic.Pointer[time.Timer]
}

// stop ends the request.
func (w *wait) stop() {
	if deadline := w.deadline.Load(); deadline != nil {
		deadline.Stop()
	}
	w.cancel(nil)
}

func newMeter(window time.Duration) *meter {
	floor := max(int64(window.Seconds()*MinRate), 1)
	return &meter{window: window, floor: floor, waiting: map[*wait]struct{}{}}
}

// begin says that w waits.
func (m *meter) begin(w *wait) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	m.waiting[w] = struct{}{}
	if m.timer == nil {
		m.timer = time.AfterFunc(m.window-m.waited, m.ring)
	}
}

// end says that w waits no more, and that n bytes came.
func (m *meter) end(w *wait, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	delete(m.waiting, w)
	m.progress(n)
}

// add counts n bytes of a request that goes on.
func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	m.progress(n)
}

// answered counts a whole answer. A manifest of 500 bytes is progress too, but one
// that takes half the window each time is not.
func (m *meter) answered() { m.add(m.floor / 2) }

func (m *meter) progress(n int64) {
	if m.got += n; m.got >= m.floor {
		m.got, m.waited = 0, 0
	}
}

// account adds the time since the last call, if something waited.
func (m *meter) account() {
	now := time.Now()
	if len(m.waiting) > 0 {
		m.waited += now.Sub(m.since)
	}
	m.since = now
}

// ring is called when the window may be over. The timer is left running between
// reads, which would otherwise set it some thousand times a second.
func (m *meter) ring() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	m.timer = nil
	switch {
	case len(m.waiting) == 0: // the next begin arms it
	case m.waited < m.window:
		m.timer = time.AfterFunc(m.window-m.waited, m.ring)
	default:
		for w := range m.waiting {
			w.cancel(&StallError{Place: w.place, Got: m.got, Window: m.window, Sending: w.sending})
		}
		m.got, m.waited = 0, 0
	}
}
