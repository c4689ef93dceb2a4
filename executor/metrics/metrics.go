// Package metrics adds up counters, histograms and gauges in one file, which
// node_exporter's textfile collector reads.
package metrics

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
)

// phaseBuckets are the upper bounds, in seconds, of the histogram of phases: from
// an empty script to a pull of many gigabytes. Files have these buckets already: others need
// another name of the metric.
var phaseBuckets = []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600, math.Inf(1)}

const (
	// lockTimeout bounds the wait for other stages, which hold the lock for
	// milliseconds; a stopped one must not block the others.
	lockTimeout = 5 * time.Second
	lockPoll    = 2 * time.Millisecond
	// LockSuffix is appended to the name of the metrics file for the lock file.
	LockSuffix = ".lock"
)

// metricHelp are the texts that Prometheus shows; docs/metrics.md lists the metrics.
var metricHelp = map[string]string{
	"sardine_jobs_total":         "Jobs that ended, by result.",
	"sardine_phase_seconds":      "Seconds that a phase of a job took.",
	"sardine_pulls_total":        "Images pulled for jobs.",
	"sardine_pulled_bytes_total": "Bytes that pulls transferred.",
	"sardine_starts_total":       "Machines started for jobs, by how they started.",
	"sardine_swept_total":        "Machines and files removed because no job owned them.",
	"sardine_images":             "Images in the store.",
	"sardine_image_bytes":        "Size of the files of all images in the store.",
	"sardine_caches":             "Caches that jobs left to later jobs, by mode.",
	"sardine_cache_disk_bytes":   "Size of all cache disks on this host.",
	"sardine_snapshots":          "Memory snapshots of machines.",
	"sardine_snapshot_bytes":     "Size of all snapshots on this host.",
	"sardine_machines":           "Running machines of jobs.",
	"sardine_idle_machines":      "Running machines that wait for a job.",
	"sardine_idle_wanted":        "Idle machines that serve is to keep, by section of the settings and image.",
	"sardine_idle_ready":         "Idle machines that jobs can take, by section of the settings and image.",
	"sardine_idle_made_total":    "Machines that serve made ready, by section of the settings.",
	"sardine_idle_failed_total":  "Machines that serve could not make ready, by section of the settings.",
	"sardine_idle_removed_total": "Idle machines that serve removed, by reason.",
}

// Changes are what one process adds to the metrics file, in Prometheus' text format.
// Each stage is a process of its own, so the file holds the sums. The zero value is
// ready to use.
type Changes struct{ changes []func(families) }

// Count adds n to a counter; labels are names and values in turn.
func (m *Changes) Count(name string, n float64, labels ...string) {
	m.changes = append(m.changes, func(f families) {
		f.family(name, counter).add(series(name, labels...), n)
	})
}

// Set sets a gauge.
func (m *Changes) Set(name string, v float64, labels ...string) {
	m.changes = append(m.changes, func(f families) {
		f.family(name, gauge).set(series(name, labels...), v)
	})
}

// Observe adds the duration of a phase to its histogram.
func (m *Changes) Observe(phase string, took time.Duration) {
	const name = "sardine_phase_seconds"
	m.changes = append(m.changes, func(f families) {
		h := f.family(name, histogram)
		for _, bound := range phaseBuckets {
			n := 0.0
			if took.Seconds() <= bound {
				n = 1
			}
			h.add(series(name+"_bucket", "phase", phase, "le", format(bound)), n)
		}
		h.add(series(name+"_sum", "phase", phase), took.Seconds())
		h.add(series(name+"_count", "phase", phase), 1)
	})
}

// Write adds the changes to the file path and clears them. It replaces the file
// atomically.
func (m *Changes) Write(path string) error {
	changes := m.changes
	m.changes = nil
	if path == "" || len(changes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	lock := flock.New(path + LockSuffix)
	if _, err := lock.TryLockContext(ctx, lockPoll); err != nil {
		return fmt.Errorf("write metrics: wait for %s: %w", lock.Path(), err)
	}
	defer lock.Close()
	f, err := readFamilies(path)
	if err != nil {
		return fmt.Errorf("write metrics to %s: %w", path, err)
	}
	for _, change := range changes {
		change(f)
	}
	if err := renameio.WriteFile(path, f.text(), 0o644); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}
