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

// bars show transfers on a terminal: one bar for each running transfer, and below
// them one for the sum. A bar disappears with its transfer, because an image can have
// thousands of layers.
type bars struct {
	out  *mpb.Progress
	what string

	mu    sync.Mutex
	tally tally
	all   *mpb.Bar // nil before the first transfer
}

// newBars draws on the terminal w; options are for tests.
func newBars(w io.Writer, what string, options ...mpb.ContainerOption) *bars {
	options = append([]mpb.ContainerOption{mpb.WithOutput(w)}, options...)
	return &bars{out: mpb.New(options...), what: what}
}

// barWidth is the largest width of a bar without its numbers, in characters.
const barWidth = 40

// Waiting writes a line above the bars.
func (b *bars) Waiting(reason string) { fmt.Fprintf(b.out, "Waiting: %s\n", reason) }

// Expect adds to the number of bytes to come.
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

// resize sets the length of the bar for the sum. The caller holds mu.
func (b *bars) resize() {
	if b.all != nil {
		b.all.SetTotal(b.tally.total(), false)
	}
}

// Close leaves the bar for the sum on the screen, and removes the others.
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

// columns are the texts around a bar.
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

// Add advances both bars.
func (t *barTransfer) Add(n int64) {
	t.bars.mu.Lock()
	defer t.bars.mu.Unlock()
	t.moved += n
	t.bars.tally.moved += n
	t.bar.IncrInt64(n)
	t.bars.all.SetCurrent(t.bars.tally.moved)
}

// Done removes the bar.
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
