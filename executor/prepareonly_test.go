package executor

import (
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/executor/metrics"
)

// For a job with scripts that another program runs, prepare makes the machine as for any other,
// with keys for that program; the machine expires without a grace, and cleanup does not guess
// how the job ended.
func TestPrepareOnly(t *testing.T) {
	b := newStageBed(t, "")
	b.Settings.Defaults.MetricsTextfile = ""
	b.PrepareOnly, b.AuthorizedKeys = true, []string{"ssh-ed25519 AAAA it's"}
	var scripts []string
	b.host.script = func(stdin string, _, _ io.Writer) int {
		scripts = append(scripts, stdin)
		return 0
	}
	if err := b.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wantCalls(t, "open", "remove", "cpus", "start", "ready", "run sh", "run sh", "log out", "close")
	if len(scripts) != 2 || !strings.Contains(scripts[1], "authorized_keys") {
		t.Errorf("scripts in the guest: %q", scripts)
	}
	started := b.host.started[0]
	if got := started.Record.Expires.Sub(started.Record.Created); got < time.Hour-time.Second || got > time.Hour+time.Second {
		t.Errorf("the machine expires after %s", got)
	}
	if !started.TakeIdle {
		t.Error("it takes no idle machine")
	}
	if got, want := b.Machine(), (Machine{b.Job.VMName(), "192.0.2.7:22", "ci"}); got != want {
		t.Errorf("the machine is %+v, want %+v", got, want)
	}
	if err := b.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	var live metrics.Live
	if err := b.AddMetrics(&live); err != nil {
		t.Fatal(err)
	}
	text, err := live.Text("")
	if err != nil || !strings.Contains(string(text), `sardine_jobs_total{result="unknown"} 1`) {
		t.Errorf("metrics: %s, %v", text, err)
	}
}

// Keys that cannot be added are a failure: without them the program could not log in.
func TestPrepareOnlyWithoutKeys(t *testing.T) {
	b := newStageBed(t, "")
	b.PrepareOnly, b.AuthorizedKeys = true, []string{"ssh-ed25519 AAAA"}
	b.host.script = func(stdin string, _, stderr io.Writer) int {
		if strings.Contains(stdin, "authorized_keys") {
			io.WriteString(stderr, "mkdir: No space left on device\n")
			return 1
		}
		return 0
	}
	err := b.Prepare(t.Context())
	if err == nil || !strings.Contains(err.Error(), "No space left") || !slices.Contains(b.host.calls, "remove") || b.host.exists {
		t.Errorf("got %v after %q", err, b.host.calls)
	}
	if _, err := os.Stat(b.host.jobDir); err == nil {
		t.Error("the directory of the job is still there")
	}
}
