package executor

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMetricsAddUpOverProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sardine.prom")
	const processes = 10
	var all sync.WaitGroup
	for range processes {
		all.Go(func() {
			m := &Metrics{}
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

func TestMetricsBeginAnewAfterDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sardine.prom")
	if err := os.WriteFile(path, []byte("sardine_jobs_total{ half a line"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := &Metrics{}
	m.Count("sardine_swept_total", 1)
	if err := m.Write(path); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); !strings.Contains(string(text), "sardine_swept_total 1") {
		t.Errorf("got:\n%s", text)
	}
}

func TestMetricsWithoutAFile(t *testing.T) {
	m := &Metrics{}
	m.Count("sardine_swept_total", 1)
	if err := m.Write(""); err != nil {
		t.Error(err)
	}
	if err := m.Write("/nonexistent/sardine.prom"); err != nil {
		t.Errorf("nothing is left to write: %v", err)
	}
}
