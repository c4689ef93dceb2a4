package keeper

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/metrics"
	"gitlab-sardine-executor/executor/serve"
	"gitlab-sardine-executor/vm/idle"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// A log collects lines, also from several goroutines.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// newKeeper returns a keeper on libvirt's in-memory driver, its directory of jobs and its log.
func newKeeper(t *testing.T, settings string) (*Keeper, string, *log) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	text := "[defaults]\nconnect = 'test:///default'\nstorage = '" + dir + "'\npull_policy = 'never'\n" + settings
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	current, err := serve.NewCurrent(func() (*config.Settings, error) { return config.Load(file) })
	if err != nil {
		t.Fatal(err)
	}
	lines := &log{}
	return New(serve.Env{Settings: current, Log: slog.New(slog.NewTextHandler(lines, nil)), Metrics: &metrics.Live{}}), filepath.Join(dir, "jobs"), lines
}

// until waits until something is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("wait until %s", what)
		}
	}
}

// run runs the keeper; stop ends it.
func run(t *testing.T, k *Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// A machine that cannot be made is tried once, and then after a delay: one line in the log, one
// failure in the metrics, and /healthz knows why.
func TestFailureIsNoLoop(t *testing.T) {
	k, jobs, lines := newKeeper(t, "[[image]]\nmatch = 'registry.example.com/none:1'\nidle_machines = 2")
	stop := run(t, k)
	until(t, "it has failed", func() bool { return k.Health() != nil })
	// Whatever it does, it looks again.
	for range 3 {
		if err := k.look(t.Context()); err != nil {
			t.Error(err)
		}
	}
	stop()
	text, err := k.Metrics.Text("")
	if err != nil {
		t.Fatal(err)
	}
	failures := strings.Count(lines.String(), "an idle machine could not be made")
	if failures < 1 || failures > makers || !strings.Contains(string(text), "sardine_idle_failed_total") || !strings.Contains(string(text), `sardine_idle_wanted{match="registry.example.com/none:1",image="registry.example.com/none:1"} 2`) {
		t.Errorf("%d failures; log:\n%s\nmetrics:\n%s", failures, lines, text)
	}
	if entries, err := os.ReadDir(jobs); err != nil || len(entries) > 2 { // .idle, .admission
		t.Errorf("left are %v, %v", entries, err)
	}
}

// What an earlier service left half made, or made for other settings, goes; machines of jobs and
// of others stay.
func TestOtherMachinesGo(t *testing.T) {
	k, jobs, _ := newKeeper(t, "[[image]]\nmatch = 'registry.example.com/none:1'\nidle_machines = 1")
	h := virttest.Open(t)
	start := func(r record.Record, offered bool) string {
		t.Helper()
		metadata, err := r.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		name := idle.NewName()
		dom := virttest.Start(t, h, &libvirtxml.Domain{Name: name, Metadata: metadata})
		t.Cleanup(func() { _ = dom.Destroy(context.Background()) })
		if err := os.MkdirAll(filepath.Join(jobs, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if offered {
			if err := idle.Touch(jobs); err != nil {
				t.Fatal(err)
			}
			if err := (idle.State{Kind: "other", Made: time.Now()}).Save(jobs, name); err != nil {
				t.Fatal(err)
			}
			if err := idle.Offer(jobs, name); err != nil {
				t.Fatal(err)
			}
		}
		return name
	}
	changed := start(record.Record{Idle: true}, true)
	half := start(record.Record{Idle: true}, false)
	taken := start(record.Record{Job: "1", Machine: "sardine-00000000-1"}, false)
	stop := run(t, k)
	runs := func(name string) bool {
		dom, err := h.Domain(t.Context(), name)
		if err == nil {
			dom.Free()
		}
		return err == nil
	}
	until(t, "the machines of no use are gone", func() bool { return !runs(changed) && !runs(half) })
	stop()
	if !runs(taken) {
		t.Error("the machine of a job is gone")
	}
}
