// Package metrics adds up counters, histograms and gauges in one file, which
// node_exporter's textfile collector reads.
package metrics

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// phaseBuckets are the upper bounds, in seconds, of the histogram of phases: from
// an empty script to a pull of many gigabytes.
var phaseBuckets = []float64{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600}

const (
	// defaultLockTimeout bounds the wait for other stages, which hold the lock for
	// milliseconds; a stopped one must not block the others.
	defaultLockTimeout = 5 * time.Second
	lockPoll           = 2 * time.Millisecond
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
type Changes struct {
	changes     []func(families)
	lockTimeout time.Duration // 0: defaultLockTimeout
}

// Count adds n to a counter; labels are names and values in turn.
func (m *Changes) Count(name string, n float64, labels ...string) {
	m.changes = append(m.changes, func(f families) {
		c := f.metric(name, dto.MetricType_COUNTER, labels)
		if c.Counter == nil {
			c.Counter = &dto.Counter{Value: new(float64)}
		}
		*c.Counter.Value += n
	})
}

// Set sets a gauge.
func (m *Changes) Set(name string, v float64, labels ...string) {
	m.changes = append(m.changes, func(f families) {
		f.metric(name, dto.MetricType_GAUGE, labels).Gauge = &dto.Gauge{Value: &v}
	})
}

// Observe adds the duration of a phase to its histogram.
func (m *Changes) Observe(phase string, took time.Duration) {
	m.changes = append(m.changes, func(f families) {
		h := f.metric("sardine_phase_seconds", dto.MetricType_HISTOGRAM, []string{"phase", phase})
		if h.Histogram == nil {
			h.Histogram = emptyHistogram()
		}
		*h.Histogram.SampleCount++
		*h.Histogram.SampleSum += took.Seconds()
		for _, b := range h.Histogram.Bucket {
			if took.Seconds() <= *b.UpperBound {
				*b.CumulativeCount++
			}
		}
	})
}

func emptyHistogram() *dto.Histogram {
	h := &dto.Histogram{SampleCount: new(uint64), SampleSum: new(float64)}
	for _, bound := range phaseBuckets {
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &bound, CumulativeCount: new(uint64)})
	}
	return h
}

// Write adds the changes to the file path and clears them. It replaces the file
// atomically.
func (m *Changes) Write(path string) error {
	changes := m.changes
	m.changes = nil
	if path == "" || len(changes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(m.lockTimeout, defaultLockTimeout))
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
	text, err := f.text()
	if err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	if err := renameio.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("write metrics: %w", err)
	}
	return nil
}

// families are the metrics of a file, by name.
type families map[string]*dto.MetricFamily

// readFamilies reads a file. A damaged file starts empty: counters may restart at any
// time.
func readFamilies(path string) (families, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	f, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return families{}, nil
	}
	return f, nil
}

// metric returns the metric with that name and labels, and adds it if necessary.
func (f families) metric(name string, kind dto.MetricType, labels []string) *dto.Metric {
	family := f[name]
	if family == nil || family.GetType() != kind {
		help := metricHelp[name]
		family = &dto.MetricFamily{Name: &name, Help: &help, Type: &kind}
		f[name] = family
	}
	for _, m := range family.Metric {
		if slices.EqualFunc(m.Label, slices.Collect(slices.Chunk(labels, 2)), func(l *dto.LabelPair, want []string) bool {
			return l.GetName() == want[0] && l.GetValue() == want[1]
		}) {
			return m
		}
	}
	m := &dto.Metric{}
	for pair := range slices.Chunk(labels, 2) {
		m.Label = append(m.Label, &dto.LabelPair{Name: &pair[0], Value: &pair[1]})
	}
	family.Metric = append(family.Metric, m)
	return m
}

func (f families) text() ([]byte, error) {
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if _, err := expfmt.MetricFamilyToText(&text, f[name]); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}
