package store

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// told is a Progress that keeps what it is told about waiting.
type told struct {
	mu      sync.Mutex
	reasons []string
	waiting chan struct{} // closed with the first
}

func newTold() *told { return &told{waiting: make(chan struct{})} }

func (p *told) Waiting(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reasons == nil {
		close(p.waiting)
	}
	p.reasons = append(p.reasons, reason)
}

func (p *told) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reasons)
}

func (*told) Start(string, int64) oci.Transfer { return oci.ProgressOrDiscard(nil).Start("", 0) }

// holdLayer makes a registry send the first bytes of a blob and then nothing, until the test
// ends; only to the first request if once is true. reached is closed when it has.
func holdLayer(t *testing.T, p *ocitest.PlainRegistry, layer digest.Digest, once bool) (reached chan struct{}) {
	t.Helper()
	reached = make(chan struct{})
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	var first sync.Once
	p.ServeBlobs(func(w http.ResponseWriter, r *http.Request, content []byte) bool {
		if !strings.HasSuffix(r.URL.Path, layer.String()) {
			return false
		}
		held := !once
		first.Do(func() { held = true })
		if !held {
			return false
		}
		_, _ = w.Write(content[:1000])
		_ = http.NewResponseController(w).Flush()
		select {
		case <-reached:
		default:
			close(reached)
		}
		select {
		case <-released:
		case <-r.Context().Done():
		}
		return true
	})
	return reached
}

// A background pull, which a test waits for.
type pulling struct {
	cancel context.CancelFunc
	done   chan error
}

func startPull(t *testing.T, s *Store, ref oci.Reference, o PullOptions) pulling {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := pulling{cancel, make(chan error, 1)}
	go func() {
		image, err := s.Pull(ctx, ref, o)
		if err == nil {
			err = image.Close()
		}
		p.done <- err
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		close(p.done)
	})
	return p
}

// wait returns the pull's error.
func (p pulling) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.done:
		p.done <- err // for the cleanup
		return err
	case <-time.After(time.Minute):
		t.Fatal("the pull does not end")
		return nil
	}
}

// TestSlowRegistryDelaysNoOther: a registry that serves an image's manifest and then stands
// still keeps its own jobs waiting, and no job of another registry.
func TestSlowRegistryDelaysNoOther(t *testing.T) {
	t.Parallel()
	honest, evil := ocitest.NewPlainRegistry(t), ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, honest.Host, evil.Host)
	content := ocitest.Noise(100_000)
	m, layer := ocitest.ContainerDisk(t, content, honest, evil)
	reached := holdLayer(t, evil, layer.Digest, false)
	s := newStore(t)
	slow := startPull(t, s, ocitest.MustParse(t, evil.Host+"/evil/x@"+m.Digest.String()), PullOptions{})
	<-reached
	waits := newTold()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	image, err := s.Pull(ctx, ocitest.MustParse(t, honest.Host+"/vms/x:1"), PullOptions{Progress: waits})
	if err != nil {
		t.Fatal(err)
	}
	ocitest.CheckContent(t, image, content)
	if got := waits.all(); len(got) > 0 {
		t.Errorf("waited: %q", got)
	}
	// The image is there: the other need not be waited for, and has what it wants.
	if err := slow.wait(t); err != nil {
		t.Errorf("the slow pull: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(s.Root(), imagesDir))
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestStalledPullIsOvertaken: of two jobs that want one image from one repository, the second
// waits, and no longer than the first makes progress.
func TestStalledPullIsOvertaken(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	content := ocitest.Noise(100_000)
	_, layer := ocitest.ContainerDisk(t, content, p)
	reached := holdLayer(t, p, layer.Digest, true)
	s := newStore(t)
	ref := ocitest.MustParse(t, p.Host+"/secret-project/x:1")
	first := startPull(t, s, ref, PullOptions{})
	<-reached
	waits := newTold()
	second := startPull(t, s, ref, PullOptions{Progress: waits, StallTimeout: 2 * time.Second})
	<-waits.waiting
	if err := second.wait(t); err != nil {
		t.Fatal(err)
	}
	if err := first.wait(t); err != nil {
		t.Errorf("the pull that was overtaken: %v", err)
	}
	reasons := strings.Join(waits.all(), "\n")
	for _, want := range []string{"pulls the same image", p.Host, " of 99", "no progress for 2s"} {
		if !strings.Contains(reasons, want) {
			t.Errorf("waiting said %q, want %q in it", reasons, want)
		}
	}
	if strings.Contains(reasons, "secret-project") {
		t.Errorf("waiting said %q, with the name of a project", reasons)
	}
	if n := p.Gets(layer.Digest); n != 2 {
		t.Errorf("the layer was asked for %d times", n)
	}
	checkTidy(t, s)
}

// checkTidy: nothing is left but images and their locks.
func checkTidy(t *testing.T, s *Store) {
	t.Helper()
	images, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for dir, most := range map[string]int{imagesDir: len(images), locksDir: len(images)} {
		entries, err := os.ReadDir(filepath.Join(s.Root(), dir))
		if err != nil || len(entries) > most {
			t.Errorf("%s: %v, %v; want at most %d entries", dir, entries, err, most)
		}
	}
}

// TestManyOvertake: of those who wait for a pull that has stalled, one pulls.
func TestManyOvertake(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	_, layer := ocitest.ContainerDisk(t, ocitest.Noise(100_000), p)
	reached := holdLayer(t, p, layer.Digest, true)
	s := newStore(t)
	ref := ocitest.MustParse(t, p.Host+"/vms/x:1")
	startPull(t, s, ref, PullOptions{})
	<-reached
	var pulls []pulling
	for range 9 {
		waits := newTold()
		pulls = append(pulls, startPull(t, s, ref, PullOptions{Progress: waits, StallTimeout: 3 * time.Second}))
		<-waits.waiting
	}
	for _, pull := range pulls {
		if err := pull.wait(t); err != nil {
			t.Error(err)
		}
	}
	if n := p.Gets(layer.Digest); n != 2 {
		t.Errorf("the layer was asked for %d times, want once for the pull that stalled and once for all others", n)
	}
}

// TestStallWatch has a clock of its own.
func TestStallWatch(t *testing.T) {
	t.Parallel()
	const stall = 10 * time.Second
	tests := map[string]struct {
		state func(second int) turnState
		want  int // the second at which the pull counts as stalled; 0: never
	}{
		"nothing":         {func(int) turnState { return turnState{} }, 11},
		"one byte/s":      {func(s int) turnState { return turnState{Received: int64(s), Beat: int64(s)} }, 11},
		"too slow":        {func(s int) turnState { return turnState{Received: int64(s) * 900} }, 11},
		"slow":            {func(s int) turnState { return turnState{Received: int64(s) * 1100} }, 0},
		"in bursts":       {func(s int) turnState { return turnState{Received: int64(s/9) * 20_000} }, 0},
		"fast, then none": {func(s int) turnState { return turnState{Received: int64(min(s, 20)) * 1e6} }, 31},
		"local":           {func(s int) turnState { return turnState{Local: true, Beat: int64(s)} }, 0},
		"local, stopped":  {func(s int) turnState { return turnState{Local: true, Beat: int64(min(s, 20))} }, 31},
		"taken over":      {func(s int) turnState { return turnState{Received: int64(s%10) * 2000} }, 0},
		"sync at the end": {func(s int) turnState {
			return turnState{Received: int64(min(s, 5)) * 1e6, Local: s > 5, Beat: int64(s)}
		}, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			watch := stallWatch{stall: stall}
			start := time.Unix(1_000_000, 0)
			got := 0
			for second := 0; second < 120 && got == 0; second++ {
				if watch.stalled(test.state(second), start.Add(time.Duration(second)*time.Second)) {
					got = second
				}
			}
			if got != test.want {
				t.Errorf("stalled after %d s, want %d", got, test.want)
			}
		})
	}
}

// TestWaitingEnds: those who wait for a turn end with their context.
func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	_, layer := ocitest.ContainerDisk(t, ocitest.Noise(10_000), p)
	reached := holdLayer(t, p, layer.Digest, false)
	s := newStore(t)
	ref := ocitest.MustParse(t, p.Host+"/vms/x:1")
	startPull(t, s, ref, PullOptions{})
	<-reached
	waits := newTold()
	waiting := startPull(t, s, ref, PullOptions{Progress: waits})
	<-waits.waiting
	waiting.cancel()
	if err := waiting.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
}

// TestPartialOfAPullStays: prune leaves what a process pulls, and removes what it left.
func TestPartialOfAPullStays(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	_, layer := ocitest.ContainerDisk(t, ocitest.Noise(10_000), p)
	reached := holdLayer(t, p, layer.Digest, false)
	s := newStore(t)
	ref := ocitest.MustParse(t, p.Host+"/vms/x:1")
	pull := startPull(t, s, ref, PullOptions{})
	<-reached
	all := PruneOptions{UnusedSince: time.Now().Add(time.Hour), Keep: KeepNothing, InUse: func(digest.Digest) bool { return false }}
	removed, err := s.Prune(t.Context(), all)
	if err != nil || len(removed) != 0 {
		t.Errorf("removed %v, %v while the image was pulled", removed, err)
	}
	pull.cancel()
	if err := pull.wait(t); err == nil {
		t.Error("the pull was cancelled, and succeeded")
	}
	removed, err = s.Prune(t.Context(), all)
	if err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v, want what the pull left", removed, err)
	}
	checkTidy(t, s)
}
