package executor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/vm/errdefs"
	"gitlab-sardine-executor/vm/guestssh"
	"gitlab-sardine-executor/vm/record"
	"gitlab-sardine-executor/vm/virt/virttest"
)

// outcomeBed returns a driver with a machine for its job, and the path of its metrics.
func outcomeBed(t *testing.T, settings string) (d *Driver, dirs config.Dirs, metrics string) {
	t.Helper()
	root := t.TempDir()
	metrics = filepath.Join(root, "sardine.prom")
	d = &Driver{
		Settings: parse(t, "[defaults]\nconnect = 'test:///default'\nstorage = '"+root+"'\nmetrics_textfile = '"+metrics+"'\n"+settings),
		Log:      joblog.New(&bytes.Buffer{}),
		Job:      job.Job{ID: "7", Server: "https://gitlab.example.com", Image: "debian:12"},
	}
	dirs, err := d.Settings.Dirs()
	if err != nil {
		t.Fatal(err)
	}
	record, err := record.Record{Job: d.Job.ID, Expires: time.Now().Add(time.Hour)}.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	machine := virttest.Start(t, virttest.Open(t), &libvirtxml.Domain{Name: d.Job.VMName(), Metadata: record})
	t.Cleanup(func() { _ = machine.Destroy(context.Background()) })
	for _, dir := range []string{dirs.Jobs, dirs.Overlays} {
		if err := os.MkdirAll(filepath.Join(dir, d.Job.VMName()), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return d, dirs, metrics
}

// counted runs cleanup and returns the results that it counted.
func counted(t *testing.T, d *Driver, metrics string) string {
	t.Helper()
	if err := d.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteMetrics(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(metrics)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, match := range regexp.MustCompile(`(?m)^sardine_jobs_total\{result="(.*)"\} (.*)$`).FindAllStringSubmatch(string(text), -1) {
		found = append(found, match[1]+" "+match[2])
	}
	return strings.Join(found, ", ")
}

// The outcome of a job follows from its stages in the same way as in GitLab Runner.
func TestOutcome(t *testing.T) {
	type ended struct {
		stage string
		err   error
	}
	killed := errors.New("its driver was killed")
	failed := failure.ScriptError(9)
	for _, test := range []struct {
		name   string
		stages []ended
		want   string
	}{
		{"success", []ended{{"prepare_script", nil}, {"get_sources", nil}, {"build_script", nil}, {"archive_cache", nil}, {"upload_artifacts_on_success", nil}}, "success"},
		{"a script that failed", []ended{{"get_sources", nil}, {"build_script", failed}}, "script_failure"},
		{"what follows it succeeds", []ended{{"build_script", failed}, {"after_script", nil}, {"archive_cache_on_failure", nil}, {"upload_artifacts_on_failure", nil}, {"cleanup_file_variables", nil}}, "script_failure"},
		{"what follows it fails otherwise", []ended{{"build_script", failed}, {"archive_cache_on_failure", guestssh.ErrLost}, {"upload_artifacts_on_failure", killed}}, "script_failure"},
		{"a step", []ended{{"build_script", nil}, {"step_release", failed}}, "script_failure"},
		{"only after_script", []ended{{"build_script", nil}, {"after_script", failed}}, "success"},
		{"only the removal of file variables", []ended{{"build_script", nil}, {"cleanup_file_variables", failed}}, "success"},
		{"the driver of after_script was killed", []ended{{"build_script", nil}, {"after_script", killed}}, "success"},
		{"restore_cache", []ended{{"get_sources", nil}, {"restore_cache", failed}}, "script_failure"},
		{"archive_cache", []ended{{"build_script", nil}, {"archive_cache", failed}}, "script_failure"},
		{"an upload", []ended{{"build_script", nil}, {"archive_cache", nil}, {"upload_artifacts_on_success", failed}}, "script_failure"},
		{"the guest died before an upload", []ended{{"build_script", nil}, {"upload_artifacts_on_success", errdefs.ErrGuestStopped}}, "system_failure"},
		{"an unknown stage", []ended{{"build_script", nil}, {"sign_artifacts", failed}}, "script_failure"},
		{"another attempt succeeds", []ended{{"get_sources", failed}, {"clear_worktree", nil}, {"get_sources", nil}, {"build_script", nil}}, "success"},
		{"no attempt succeeds", []ended{{"get_sources", guestssh.ErrLost}, {"clear_worktree", nil}, {"get_sources", failed}, {"archive_cache_on_failure", nil}}, "script_failure"},
		{"an attempt is spent on clear_worktree", []ended{{"get_sources", failed}, {"clear_worktree", guestssh.ErrLost}, {"upload_artifacts_on_failure", nil}}, "system_failure"},
		{"the settings are wrong", []ended{{"get_sources", nil}, {"build_script", config.ErrSettings}}, "build_failure"},
		{"killed", []ended{{"get_sources", nil}, {"build_script", killed}}, "system_failure"},
		{"killed, and what follows succeeds", []ended{{"build_script", killed}, {"after_script", nil}, {"archive_cache_on_failure", nil}}, "system_failure"},
		{"cancelled", []ended{{"get_sources", nil}, {"build_script", failure.ErrCancelled}, {"after_script", nil}, {"archive_cache_on_failure", nil}}, "cancelled"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, dirs, metrics := outcomeBed(t, "")
			for _, stage := range test.stages {
				if end := d.beginStage(dirs, stage.stage); stage.err != killed {
					end(t.Context(), stage.err)
				}
			}
			if got := counted(t, d, metrics); got != test.want+" 1" {
				t.Errorf("counted %s, want %s", got, test.want)
			}
		})
	}
}

// After a signal, the job was cancelled, whatever the error of the stage.
func TestOutcomeAfterSignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(failure.ErrCancelled)
	for _, err := range []error{nil, failure.ScriptError(143), guestssh.ErrLost, oci.ErrNotFound, context.Canceled} {
		if got := outcome.ResultOf(ctx, err); got != outcome.Cancelled {
			t.Errorf("%v: %s", err, got)
		}
	}
}

// Without a script, the job was cancelled, or prepare was killed.
func TestOutcomeWithoutScripts(t *testing.T) {
	d, _, metrics := outcomeBed(t, "")
	if got := counted(t, d, metrics); got != "system_failure 1" {
		t.Errorf("prepare was killed: counted %s", got)
	}
	d, dirs, metrics := outcomeBed(t, "")
	d.save(d.jobDir(dirs), outcome.Outcome{Result: outcome.Cancelled})
	if got := counted(t, d, metrics); got != "cancelled 1" {
		t.Errorf("nothing came after prepare: counted %s", got)
	}
	d, dirs, metrics = outcomeBed(t, "")
	d.save(d.jobDir(dirs), outcome.Outcome{Result: outcome.Cancelled})
	d.beginStage(dirs, "get_sources")(t.Context(), nil)
	if got := counted(t, d, metrics); got != "success 1" {
		t.Errorf("prepared and run: counted %s", got)
	}
}

// The machine of a failed job is kept, whichever stage failed, and the job is counted.
// The machine of any other job is removed.
func TestKeepOnFailure(t *testing.T) {
	for _, test := range []struct {
		stage string
		err   error
		want  string
		kept  bool
	}{
		{"build_script", failure.ScriptError(9), "script_failure 1", true},
		{"restore_cache", guestssh.ErrLost, "system_failure 1", true},
		{"upload_artifacts_on_success", failure.ScriptError(1), "script_failure 1", true},
		{"build_script", failure.ErrCancelled, "cancelled 1", false},
		{"build_script", nil, "success 1", false},
	} {
		t.Run(test.stage+" "+test.want, func(t *testing.T) {
			d, dirs, metrics := outcomeBed(t, "keep_on_failure = '30m'")
			d.beginStage(dirs, test.stage)(t.Context(), test.err)
			got := counted(t, d, metrics)
			_, err := os.Stat(d.jobDir(dirs))
			if kept := err == nil; got != test.want || kept != test.kept {
				t.Errorf("counted %s, kept: %v", got, kept)
			}
		})
	}
}
