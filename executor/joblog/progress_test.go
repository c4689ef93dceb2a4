package joblog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vbauerster/mpb/v8"

	"gitlab-sardine-executor/oci"
)

const mib = 1 << 20

// A testClock stands still between calls of advance.
type testClock struct{ time time.Time }

func (c *testClock) now() time.Time          { return c.time }
func (c *testClock) advance(d time.Duration) { c.time = c.time.Add(d) }

func TestProgressLines(t *testing.T) {
	broken := errors.New("connection lost")
	tests := map[string]struct {
		run  func(p Progress, clock *testClock)
		want []string
	}{
		"one layer": {func(p Progress, clock *testClock) {
			layer := p.Start("layer", 100*mib)
			for range 4 {
				clock.advance(3 * time.Second)
				layer.Add(25 * mib)
			}
			layer.Done(nil)
		}, []string{
			"Pulling: 50MiB of 100MiB, 8.333MiB/s, 6s left",
			"Pulling: 100MiB, 8.333MiB/s",
			"Pulling: 100MiB, done in 12.0 s",
		}},
		"quickly done": {func(p Progress, clock *testClock) {
			layer := p.Start("layer", mib)
			clock.advance(time.Second)
			layer.Add(mib)
			layer.Done(nil)
		}, nil},
		"more expected than begun": {func(p Progress, clock *testClock) {
			p.(oci.Estimator).Expect(100 * mib)
			for range 2 {
				layer := p.Start("layer", 50*mib)
				clock.advance(10 * time.Second)
				layer.Add(50 * mib)
				layer.Done(nil)
			}
		}, []string{
			"Pulling: 50MiB of 100MiB, 5MiB/s, 10s left",
			"Pulling: 100MiB, 5MiB/s",
			"Pulling: 100MiB, done in 20.0 s",
		}},
		"tried again": {func(p Progress, clock *testClock) {
			p.(oci.Estimator).Expect(20 * mib)
			layer := p.Start("layer", 20*mib)
			clock.advance(5 * time.Second)
			layer.Add(15 * mib)
			layer.Done(broken)
			layer = p.Start("layer", 20*mib)
			clock.advance(5 * time.Second)
			layer.Add(10 * mib)
		}, []string{
			"Pulling: 15MiB of 20MiB, 3MiB/s, 2s left",
			"Pulling: 10MiB of 20MiB, 1MiB/s, 10s left",
		}},
		"size unknown": {func(p Progress, clock *testClock) {
			layer := p.Start("layer", -1)
			clock.advance(5 * time.Second)
			layer.Add(5 * mib)
		}, []string{"Pulling: 5MiB, 1MiB/s"}},
		"waiting": {func(p Progress, clock *testClock) {
			p.Waiting("another job pulls it")
		}, []string{"Waiting: another job pulls it"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			clock := &testClock{time.Unix(0, 0)}
			p := newLines(New(&out), "Pulling", clock.now)
			test.run(p, clock)
			p.Close()
			var got []string
			if out.Len() > 0 {
				got = strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBars draws on request.
func TestBars(t *testing.T) {
	var out bytes.Buffer
	refresh := make(chan any)
	b := newBars(&out, "Pulling", mpb.WithManualRefresh(refresh), mpb.WithWidth(120))
	draw := func() {
		// The third request is accepted after the first has been drawn.
		for range 3 {
			refresh <- time.Now()
		}
	}
	b.Expect(40 * mib)
	first, second := b.Start("first", 10*mib), b.Start("second", 30*mib)
	first.Add(10 * mib)
	first.Done(nil)
	second.Add(5 * mib)
	b.Waiting("for nothing")
	draw()
	second.Done(errors.New("connection lost"))
	second = b.Start("again", 30*mib)
	second.Add(30 * mib)
	second.Done(nil)
	draw()
	b.Close()
	for _, want := range []string{"second", "5.0 MiB / 30.0 MiB", "Pulling", "15.0 MiB / 40.0 MiB", "Waiting: for nothing\n", "40.0 MiB / 40.0 MiB"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

func TestBarsWithoutTransfer(t *testing.T) {
	var out bytes.Buffer
	newBars(&out, "Pulling").Close()
	if out.Len() > 0 {
		t.Errorf("drew %q", out.String())
	}
}

// A writer that is not a terminal gets lines.
func TestNewProgress(t *testing.T) {
	if _, ok := NewProgress(&bytes.Buffer{}, "Pulling").(*Lines); !ok {
		t.Error("a buffer gets bars")
	}
	quiet := NoProgress()
	quiet.Waiting("x")
	quiet.Start("x", 1).Done(nil)
	quiet.Close()
}
