package metrics

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"
)

func TestProcessesAddUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sardine.prom")
	const processes = 10
	var all sync.WaitGroup
	for range processes {
		all.Go(func() {
			m := &Changes{}
			m.Count("sardine_jobs_total", 1, "result", "success")
			m.Count("sardine_jobs_total", 2, "result", `"odd\`)
			m.Observe("boot", 700*time.Millisecond)
			m.Set("sardine_machines", 3)
			if err := m.Write(path); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# HELP sardine_jobs_total Jobs that ended, by result.",
		"# TYPE sardine_jobs_total counter",
		`sardine_jobs_total{result="success"} 10`,
		`sardine_jobs_total{result="\"odd\\"} 20`,
		"# TYPE sardine_phase_seconds histogram",
		`sardine_phase_seconds_bucket{phase="boot",le="0.5"} 0`,
		`sardine_phase_seconds_bucket{phase="boot",le="1"} 10`,
		`sardine_phase_seconds_bucket{phase="boot",le="+Inf"} 10`,
		`sardine_phase_seconds_sum{phase="boot"} 7`,
		`sardine_phase_seconds_count{phase="boot"} 10`,
		"sardine_machines 3",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("missing: %s\nin:\n%s", want, text)
		}
	}
}

// A reader such as node_exporter sees a complete file at any time.
func TestFileIsComplete(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sardine.prom")
	write := func() {
		m := &Changes{}
		m.Count("sardine_jobs_total", 1, "result", strings.Repeat("x", 64<<10)) // more than one write call
		m.Observe("run", time.Second)
		m.Set("sardine_pulls_total", 1)
		if err := m.Write(path); err != nil {
			t.Error(err)
		}
	}
	write()
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for range 50 {
				write()
			}
		})
	}
	written := make(chan struct{})
	go func() { writers.Wait(); close(written) }()
	for reads := 0; ; reads++ {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# HELP sardine_jobs_total") || !strings.HasSuffix(string(text), "sardine_pulls_total 1\n") {
			t.Fatalf("after %d reads: a part of the file, %d bytes", reads, len(text))
		}
		select {
		case <-written:
			if !strings.Contains(string(text), `sardine_phase_seconds_count{phase="run"} 101`) {
				continue // the last write came after the read
			}
			t.Logf("%d reads", reads)
			return
		default:
		}
	}
}

// A stage that never releases the lock costs other stages their metrics, not their jobs.
func TestLockTimeout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sardine.prom")
	lock := flock.New(path + LockSuffix)
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	m := &Changes{lockTimeout: 50 * time.Millisecond}
	m.Count("sardine_swept_total", 1)
	if err := m.Write(path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// docs/metrics.md lists exactly the metrics that exist.
func TestDocsListEveryMetric(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile("`(sardine_[a-z_]+)`").FindAllStringSubmatch(string(text), -1)
	for _, name := range listed {
		if metricHelp[name[1]] == "" {
			t.Errorf("there is no metric %s", name[1])
		}
	}
	for name := range metricHelp {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/metrics.md lacks %s", name)
		}
	}
}

func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sardine.prom")
	if err := os.WriteFile(path, []byte("sardine_jobs_total{ half a line"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := &Changes{}
	m.Count("sardine_swept_total", 1)
	if err := m.Write(path); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); !strings.Contains(string(text), "sardine_swept_total 1") {
		t.Errorf("got:\n%s", text)
	}
}

func TestNoFile(t *testing.T) {
	m := &Changes{}
	m.Count("sardine_swept_total", 1)
	if err := m.Write(""); err != nil {
		t.Error(err)
	}
	if err := m.Write("/nonexistent/sardine.prom"); err != nil {
		t.Errorf("nothing is left to write: %v", err)
	}
}
