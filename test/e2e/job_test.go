//go:build boot

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// patience is how long a test waits for one thing: far more than any needs, also on
// a host that does much else.
const patience = 10 * time.Minute

// deadline ends a test that waits for what never comes.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// checkOutputs is an error if a daemon has inherited a stage's output, or if an
// author saw what only a developer understands.
func checkOutputs(t testing.TB, result gitlab.Result) {
	t.Helper()
	for _, e := range result.Executions {
		if e.OutputHeld {
			t.Errorf("somebody holds the output of a stage open: %s", e)
		}
		if inside.MatchString(e.Stdout + e.Stderr) {
			t.Errorf("the program shows its inside: %s", e)
		}
	}
}

var inside = regexp.MustCompile(`goroutine \d|panic:|\.go:\d+|internal error`)

// A whole job in the machine that the program makes without settings.
func TestJob(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		s.DefaultMachine = true
		s.Configure(t, `accel = "auto"`)
		job := s.job("echo \"to stdout from $(id -un) in $PWD: $GREETING\"\necho to stderr >&2\ntouch file ../../../cache/file")
		job.Variables = []gitlab.Variable{{Key: "GREETING", Value: "grüß 'dich' $HOME"}}
		job.AfterScript = "ls"
		s.checkNothingToCleanUp(t, job)
		result := s.runner(t).Run(deadline(t), job)
		s.checkNothingToCleanUp(t, job)
		checkOutputs(t, result)
		if result.Status != gitlab.Success {
			t.Fatal(result)
		}
		script, _ := result.Find(gitlab.StageBuildScript)
		if want := "to stdout from vagrant in /builds/group/project: grüß 'dich' $HOME\nto stderr\n"; script.Stdout != want { // in this order, in one stream
			t.Errorf("stdout is %q, want %q", script.Stdout, want)
		}
		if want := ""; script.Stderr != want {
			t.Errorf("stderr is %q, want %q", script.Stderr, want)
		}
		if after, _ := result.Find(gitlab.StageAfterScript); after.Stdout != "file\n" {
			t.Errorf("after_script sees %q, want the file of script", after.Stdout)
		}
		prepare, _ := result.Find("prepare")
		s.checkPrepareLog(t, prepare.Stderr)
	})
}

// checkNothingToCleanUp runs cleanup of a job that has no machine: it succeeds and says
// nothing.
func (s *site) checkNothingToCleanUp(t *testing.T, job gitlab.Job) {
	t.Helper()
	if e := s.runner(t).Stage(deadline(t), job, "cleanup"); e.ExitCode != 0 || e.Stdout+e.Stderr != "" {
		t.Errorf("cleanup of nothing: %s", e)
	}
}

// checkPrepareLog wants sections in the log of prepare, and a line that identifies the
// image.
func (s *site) checkPrepareLog(t *testing.T, log string) {
	t.Helper()
	for _, section := range []string{"sardine_pull", "sardine_boot"} {
		if !sectionOf(log, section) {
			t.Errorf("no section %s in:\n%q", section, log)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	// Digest and size are those of the store.
	what := regexp.MustCompile(`(?m)^Image ` + regexp.QuoteMeta(s.image) + `, (sha256:[0-9a-f]{64}), ([0-9.]+)MiB, on ` + regexp.QuoteMeta(host) + ` \([0-9.]+ s\)$`).FindStringSubmatch(log)
	if what == nil {
		t.Fatalf("no line on image, digest, size and host in:\n%s", log)
	}
	stored, err := filepath.Glob(filepath.Join(s.Storage, "images", strings.Replace(what[1], ":", "-", 1)+".*"))
	if err != nil || len(stored) != 1 {
		t.Errorf("the store has no image %s, but %v (%v)", what[1], stored, err)
	}
	if mib, err := strconv.ParseFloat(what[2], 64); err != nil || mib < 5 || mib > 100 {
		t.Errorf("the guest has %s MiB", what[2])
	}
}

// Each script's status is its own, and that of the job is the first. The image is in the
// store: it is not pulled again, and needs no registry if the settings say so.
func TestExitCodes(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode, `pull_policy = "if-not-present"`)
		s.slow.Refuse(t)
		job := s.job("echo fails; exit 7")
		job.AfterScript = "kill -KILL $$"
		job.Scripts = map[string]string{
			gitlab.StageGetSources:               "exit 0",
			gitlab.StageUploadArtifactsOnFailure: "exit 3",
		}
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		if result.Status != gitlab.BuildFailure || result.ExitCode != 7 {
			t.Errorf("want a build failure with exit code 7, got %s", result)
		}
		for stage, want := range map[string]struct {
			exit int
			file string
		}{
			gitlab.StageGetSources:               {0, ""},
			gitlab.StageBuildScript:              {gitlab.BuildFailureExitCode, "7"},
			gitlab.StageAfterScript:              {gitlab.BuildFailureExitCode, "137"},
			gitlab.StageUploadArtifactsOnFailure: {gitlab.BuildFailureExitCode, "3"},
		} {
			e, ran := result.Find(stage)
			if !ran || e.ExitCode != want.exit || want.file != "" && strings.TrimSpace(e.CodeFile) != want.file {
				t.Errorf("%s: exit code %d and %q in the code file, want %d and %q", stage, e.ExitCode, e.CodeFile, want.exit, want.file)
			}
		}
	})
}

// A canceled job whose guest still boots has one attempt, and leaves nothing.
func TestCanceledPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringBoot, 1)
		reached, _ := s.arrange(t, duringBoot, job)
		build := s.runner(t).Start(deadline(t), job)
		reached(build.Log())
		build.Cancel()
		result := build.Wait()
		checkOutputs(t, result)
		prepare, _ := result.Find("prepare")
		if result.Status != gitlab.Canceled || prepare.ExitCode != gitlab.SystemFailureExitCode || prepare.Killed {
			t.Errorf("want a canceled job and exit code %d, got %s", gitlab.SystemFailureExitCode, result)
		}
		if want := []string{"config", "prepare", "cleanup"}; !slices.Equal(result.Stages(), want) {
			t.Errorf("stages %v, want %v", result.Stages(), want)
		}
	})
}

// blobsSent are the digests of the blobs that the registry has sent.
func (s *site) blobsSent(t *testing.T) []string {
	t.Helper()
	var digests []string
	for line := range strings.Lines(s.registry.Log(t)) {
		if match := blobRequest.FindStringSubmatch(line); match != nil && strings.Contains(line, "response completed") {
			digests = append(digests, match[1])
		}
	}
	return digests
}

var blobRequest = regexp.MustCompile(`http\.request\.method=GET .*/blobs/(sha256:[0-9a-f]{64})`)
