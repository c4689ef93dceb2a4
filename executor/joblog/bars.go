package joblog

import (
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"gitlab-sardine-executor/oci"
)

// bars show transfers on a terminal: one bar for each that is under way, and
// below them one for all together. A bar goes when its transfer has ended, for an
// image can have thousands of layers.
type bars struct {
	out  *mpb.Progress
	what string

	mu    sync.Mutex
	tally tally
	all   *mpb.Bar // nil until something moves
}

// newBars writes to w, which is a terminal; options are for tests.
func newBars(w io.Writer, what string, options ...mpb.ContainerOption) *bars {
	options = append([]mpb.ContainerOption{mpb.WithOutput(w)}, options...)
	return &bars{out: mpb.New(options...), what: what}
}

// barWidth is the most that a bar takes, in characters, without its numbers.
const barWidth = 40

// Waiting writes a line above the bars.
func (b *bars) Waiting(reason string) { fmt.Fprintf(b.out, "Waiting: %s\n", reason) }

// Expect notes how much is to come.
func (b *bars) Expect(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tally.expect(size)
	b.resize()
}

// Start adds a bar.
func (b *bars) Start(name string, size int64) oci.Transfer {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil {
		b.all = b.out.AddBar(0, append(columns(b.what), mpb.BarPriority(math.MaxInt))...)
	}
	b.tally.start(size)
	b.resize()
	bar := b.out.AddBar(max(size, 0), append(columns(name), mpb.BarRemoveOnComplete())...)
	return &barTransfer{bars: b, bar: bar, size: size}
}

// resize makes the bar for all as long as there is to move. Our caller holds mu.
func (b *bars) resize() {
	if b.all != nil {
		b.all.SetTotal(b.tally.total(), false)
	}
}

// Close leaves the bar for all on the screen as it is, and takes the others away.
func (b *bars) Close() {
	b.mu.Lock()
	switch {
	case b.all == nil:
	case b.tally.complete():
		b.all.SetTotal(-1, true)
	default:
		b.all.Abort(false)
	}
	b.mu.Unlock()
	b.out.Shutdown()
}

// columns are what stands around a bar.
func columns(name string) []mpb.BarOption {
	return []mpb.BarOption{
		mpb.BarWidth(barWidth),
		mpb.PrependDecorators(
			decor.Name(name, decor.WCSyncSpaceR),
			decor.Counters(decor.SizeB1024(0), "% .1f / % .1f", decor.WCSyncSpace),
		),
		mpb.AppendDecorators(
			decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace),
			decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "done"),
		),
	}
}

// A barTransfer is a transfer with a bar of its own.
type barTransfer struct {
	bars  *bars
	bar   *mpb.Bar
	size  int64
	moved int64 // guarded by bars.mu
}

// Add moves both bars on.
func (t *barTransfer) Add(n int64) {
	t.bars.mu.Lock()
	defer t.bars.mu.Unlock()
	t.moved += n
	t.bars.tally.moved += n
	t.bar.IncrInt64(n)
	t.bars.all.SetCurrent(t.bars.tally.moved)
}

// Done takes the bar away.
func (t *barTransfer) Done(err error) {
	t.bars.mu.Lock()
	defer t.bars.mu.Unlock()
	if err == nil {
		t.bar.SetTotal(-1, true)
		return
	}
	t.bars.tally.drop(t.size, t.moved)
	t.bars.all.SetCurrent(t.bars.tally.moved)
	t.bar.Abort(true)
}
