package metrics

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// written is a file with metrics of each kind.
func written(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sardine.prom")
	m := &Changes{}
	m.Count("sardine_jobs_total", 3, "result", "success")
	m.Count("sardine_pulled_bytes_total", 1<<40+1)
	m.Set("sardine_idle_wanted", 2, "section", `a "b" \n`+"\n{c}, d", "image", "\xff")
	for _, took := range []time.Duration{0, 100 * time.Millisecond, 2 * time.Hour} {
		m.Observe("boot", took)
	}
	m.Observe("run", time.Minute+time.Nanosecond)
	if err := m.Write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// prometheus reads text as Prometheus and its node_exporter do.
func prometheus(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	read, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return read
}

func TestPrometheusReads(t *testing.T) {
	read := prometheus(t, written(t))
	if names := slices.Sorted(maps.Keys(read)); !slices.Equal(names, []string{"sardine_idle_wanted", "sardine_jobs_total", "sardine_phase_seconds", "sardine_pulled_bytes_total"}) {
		t.Errorf("got %v", names)
	}
	wanted := read["sardine_idle_wanted"].Metric[0]
	if wanted.Gauge.GetValue() != 2 || wanted.Label[0].GetValue() != `a "b" \n`+"\n{c}, d" || wanted.Label[1].GetValue() != "\ufffd" {
		t.Errorf("got %v", wanted)
	}
	if bytes := read["sardine_pulled_bytes_total"].Metric[0].Counter.GetValue(); bytes != 1<<40+1 {
		t.Errorf("got %v", bytes)
	}
	phases := read["sardine_phase_seconds"].Metric
	if len(phases) != 2 || phases[1].Histogram.GetSampleSum() != 60.000000001 {
		t.Fatalf("got %v", phases)
	}
	boot := phases[0].Histogram
	if boot.GetSampleCount() != 3 || boot.GetSampleSum() != 7200.1 || len(boot.Bucket) != len(phaseBuckets) {
		t.Errorf("got %v", boot)
	}
	for _, b := range boot.Bucket {
		want := uint64(2)
		if b.GetUpperBound() > 7200 {
			want = 3
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("got %v", b)
		}
	}
}

// Versions before this one wrote files by Prometheus' library, which writes large numbers
// otherwise. Counters go on from there.
func TestFileOfLibrary(t *testing.T) {
	text := written(t)
	var library bytes.Buffer
	read := prometheus(t, text)
	for _, name := range slices.Sorted(maps.Keys(read)) {
		if _, err := expfmt.MetricFamilyToText(&library, read[name]); err != nil {
			t.Fatal(err)
		}
	}
	found := parse(library.String())
	if found == nil {
		t.Fatalf("not read:\n%s", library.String())
	}
	if diff := cmp.Diff(text, string(found.text())); diff != "" {
		t.Error(diff)
	}
}

func TestDamaged(t *testing.T) {
	const head = "# HELP a_total Help.\n# TYPE a_total counter\n"
	for text, want := range map[string]bool{
		"":   true,
		head: true,
		head + "a_total 1\na_total{b=\"c\"} 2.5e+07\na_total{b=\"\",d=\"\\\\\\\"\\n\"} +Inf\n":                              true,
		"# HELP h Help.\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n# HELP i \n# TYPE i gauge\ni 1\n": true,
		head + "a_total 1":                           false, // half a line
		"\x00":                                       false,
		head + "a_total{b=\"\xff\"} 1\n":             false,
		"a_total 1\n":                                false,
		"# TYPE a_total counter\n":                   false,
		"# HELP a_total Help.\n":                     false,
		"# HELP a_total Help.\na_total 1\n":          false,
		"# HELP a_total Help.\n" + head:              false,
		head + head:                                  false,
		head + "# TYPE a_total counter\n":            false,
		head + "# TYPE b counter\n":                  false,
		"# HELP a-b Help.\n# TYPE a-b gauge\n":       false,
		"# HELP a Help.\n# TYPE a summary\n":         false,
		"# HELP h Help.\n# TYPE h histogram\nh 1\n":  false,
		head + "\n":                                  false,
		head + "a_total\n":                           false,
		head + "a_total x\n":                         false,
		head + "a_total 1\na_total 2\n":              false,
		head + "a_total_sum 1\n":                     false,
		head + "b_total 1\n":                         false,
		head + "a_total{ 1\n":                        false,
		head + "a_total{} 1\n":                       false,
		head + "a_total{b=\"c\" 1\n":                 false,
		head + "a_total{b=\"c\",} 1\n":               false,
		head + "a_total{b=\"c} 1\n":                  false,
		head + "a_total{b=\"c\"d=\"e\"} 1\n":         false,
		head + "a_total{=\"c\"} 1\n":                 false,
		head + "a_total{b=\"\\t\"} 1\n":              false,
		head + "a_total{b=\"\\":                      false,
		head + "a_total{b=\"c\"} } 1\n":              false,
		head + "a_total{b=\"c\"} 1 1700000000000\n":  false, // a time
		head + strings.Repeat("a_total{b=\"", 1<<10): false,
	} {
		if got := parse(text); (got != nil) != want {
			t.Errorf("%.200q: got %v", text, got)
		}
	}
}

// A file that is read is written as it was, or as the same numbers.
func FuzzParse(f *testing.F) {
	f.Add(written(f))
	f.Add("# HELP i \n# TYPE i gauge\ni 1e3\ni{a=\"\\\\\"} NaN\n")
	f.Fuzz(func(t *testing.T, text string) {
		found := parse(text)
		if found == nil {
			return
		}
		again := parse(string(found.text()))
		if again == nil || !bytes.Equal(found.text(), again.text()) {
			t.Errorf("%q was written as %q", text, found.text())
		}
	})
}
