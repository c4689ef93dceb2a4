//go:build boot

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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

func TestJob(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		job := s.job("echo \"to stdout from $(id -un) in $PWD: $GREETING\"\necho to stderr >&2\ntouch file ../../../cache/file")
		job.Variables = []gitlab.Variable{{Key: "GREETING", Value: "grüß 'dich' $HOME"}}
		job.AfterScript = "ls"
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		if result.Status != gitlab.Success {
			t.Fatal(result)
		}
		script, _ := result.Find(gitlab.StageBuildScript)
		if want := "to stdout from vagrant in /builds/group/project: grüß 'dich' $HOME\n"; script.Stdout != want {
			t.Errorf("stdout is %q, want %q", script.Stdout, want)
		}
		if want := ""; script.Stderr != want {
			t.Errorf("stderr is %q, want %q", script.Stderr, want)
		}
		if after, _ := result.Find(gitlab.StageAfterScript); after.Stdout != "file\n" {
			t.Errorf("after_script sees %q, want the file of script", after.Stdout)
		}
		prepare, _ := result.Find("prepare")
		for _, section := range []string{"sardine_pull", "sardine_boot"} {
			if !sectionOf(prepare.Stderr, section) {
				t.Errorf("no section %s in:\n%q", section, prepare.Stderr)
			}
		}
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		// Digest and size are those of the store.
		what := regexp.MustCompile(`(?m)^Image ` + regexp.QuoteMeta(s.image) + `, (sha256:[0-9a-f]{64}), ([0-9.]+)MiB, on ` + regexp.QuoteMeta(host) + ` \([0-9.]+ s\)$`).FindStringSubmatch(prepare.Stderr)
		if what == nil {
			t.Fatalf("no line on image, digest, size and host in:\n%s", prepare.Stderr)
		}
		stored, err := filepath.Glob(filepath.Join(s.storage, "images", strings.Replace(what[1], ":", "-", 1)+".*"))
		if err != nil || len(stored) != 1 {
			t.Errorf("the store has no image %s, but %v (%v)", what[1], stored, err)
		}
		if mib, err := strconv.ParseFloat(what[2], 64); err != nil || mib < 5 || mib > 100 {
			t.Errorf("the guest has %s MiB", what[2])
		}
	})
}

func TestExitCodes(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
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

// Somebody ends the driver, or the runner does.
func TestInterruptedScript(t *testing.T) {
	tests := []struct {
		name      string
		interrupt func(*gitlab.Build) error
		status    gitlab.Status
		exit      int
	}{
		{"SIGTERM", func(b *gitlab.Build) error { return b.Signal(syscall.SIGTERM) }, gitlab.SystemFailure, gitlab.SystemFailureExitCode},
		{"SIGKILL", func(b *gitlab.Build) error { return b.Signal(syscall.SIGKILL) }, gitlab.SystemFailure, -1},
		{"cancel", func(b *gitlab.Build) error { b.Cancel(); return nil }, gitlab.Canceled, gitlab.SystemFailureExitCode},
	}
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				build := s.runner(t).Start(deadline(t), s.job("echo script runs\nsleep 1000"))
				if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
					t.Fatal(err)
				}
				if err := test.interrupt(build); err != nil {
					t.Fatal(err)
				}
				result := build.Wait()
				checkOutputs(t, result)
				script, _ := result.Find(gitlab.StageBuildScript)
				if result.Status != test.status || script.ExitCode != test.exit || script.Killed {
					t.Errorf("want %s and exit code %d, got %s", test.status, test.exit, result)
				}
			})
		}
	})
}

// prepare is told to end while the guest boots: no further attempt, nothing left.
func TestCanceledPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		build := s.runner(t).Start(deadline(t), s.job("echo script runs"))
		for !strings.Contains(mode.Virsh(t, "list", "--name"), "sardine-") {
			select {
			case <-deadline(t).Done():
				t.Fatal("no machine was ever started")
			case <-time.After(20 * time.Millisecond):
			}
		}
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

// Two jobs want one image that is not here yet: both run, and it is pulled once.
func TestTwoJobsAtOnce(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		pushed := len(s.blobsSent(t))
		results := make([]gitlab.Result, 2)
		var jobs sync.WaitGroup
		for i := range results {
			job := s.job(fmt.Sprintf("echo job %d", i))
			job.ID, job.Concurrent = int64(100+i), i
			runner := s.runner(t)
			jobs.Go(func() { results[i] = runner.Run(deadline(t), job) })
		}
		jobs.Wait()
		for i, result := range results {
			checkOutputs(t, result)
			script, _ := result.Find(gitlab.StageBuildScript)
			if result.Status != gitlab.Success || script.Stdout != fmt.Sprintf("job %d\n", i) {
				t.Errorf("job %d: %s", i, result)
			}
		}
		sent := s.blobsSent(t)[pushed:]
		if len(sent) == 0 {
			t.Errorf("the registry has sent nothing:\n%s", s.registry.Log(t))
		}
		// Each job reads the image's config to know what the store calls it.
		config := s.registry.Config(t, "vms/guest", "1")
		times := map[string]int{}
		for _, blob := range sent {
			times[blob]++
		}
		for blob, n := range times {
			if n != 1 && !(blob == config && n == len(results)) {
				t.Errorf("%s was sent %d times; the config is %s", blob, n, config)
			}
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

func TestCleanupAgain(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		job := s.job("true")
		never := s.runner(t).Stage(deadline(t), job, "cleanup")
		result := s.runner(t).Run(deadline(t), job)
		again := s.runner(t).Stage(deadline(t), job, "cleanup")
		if result.Status != gitlab.Success || never.ExitCode != 0 || again.ExitCode != 0 {
			t.Errorf("cleanup without a job, job, and cleanup again:\n%s\n%s\n%s", never, result, again)
		}
		if never.Stdout+never.Stderr+again.Stdout+again.Stderr != "" {
			t.Errorf("cleanup of nothing has something to say:\n%s\n%s", never, again)
		}
	})
}

// An image that is in the store already is not imported again, and needs no
// registry if the settings say so.
func TestSecondJob(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `pull_policy = "if-not-present"`)
		for i := range 2 {
			result := s.runner(t).Run(deadline(t), s.job("echo done"))
			checkOutputs(t, result)
			if result.Status != gitlab.Success {
				t.Fatalf("job %d: %s", i, result)
			}
			s.registry.Stop()
		}
	})
}
