//go:build boot

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// waitingScript says that it runs, and waits until the test creates /tmp/go in the guest.
const waitingScript = "rm -f /tmp/go; echo state >/tmp/state; echo script runs\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done"

// TestInterruptedScript interrupts the scripts of several jobs in one machine, and looks
// at what GitLab Runner sees, and at the stages that follow.
func TestInterruptedScript(t *testing.T) {
	failed := []string{"config", "prepare", gitlab.StageBuildScript, gitlab.StageAfterScript, gitlab.StageUploadArtifactsOnFailure, "cleanup"}
	ended := []string{"config", "prepare", gitlab.StageBuildScript, "cleanup"}
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringScript, 1)
		job.Script = waitingScript
		job.AfterScript = "cat /tmp/state"
		job.Scripts = map[string]string{gitlab.StageUploadArtifactsOnFailure: "echo uploads"}
		s.mustPrepare(t, job)
		for _, test := range []struct {
			name      string
			interrupt func(t *testing.T, b *gitlab.Build)
			status    gitlab.Status
			exit      int
			stages    []string
		}{
			{"SIGTERM", signalTo(syscall.SIGTERM), gitlab.SystemFailure, gitlab.SystemFailureExitCode, failed},
			{"the script's time is over", func(_ *testing.T, b *gitlab.Build) { b.ExpireScript() }, gitlab.SystemFailure, gitlab.SystemFailureExitCode, failed},
			{"the job's time is over", func(_ *testing.T, b *gitlab.Build) { b.Expire() }, gitlab.SystemFailure, gitlab.SystemFailureExitCode, ended},
			{"graceful cancel", func(_ *testing.T, b *gitlab.Build) { b.CancelGracefully() }, gitlab.Canceled, gitlab.SystemFailureExitCode, failed},
			{"cancel", func(_ *testing.T, b *gitlab.Build) { b.Cancel() }, gitlab.Canceled, gitlab.SystemFailureExitCode, ended},
			{"restart of libvirtd", func(t *testing.T, _ *gitlab.Build) { s.restartLibvirtd(t); s.inGuest(t, job, "touch /tmp/go") }, gitlab.Success, 0,
				[]string{"config", "prepare", gitlab.StageBuildScript, gitlab.StageAfterScript, "cleanup"}},
			{"SIGKILL", signalTo(syscall.SIGKILL), gitlab.SystemFailure, -1, failed},
		} {
			t.Run(test.name, func(t *testing.T) {
				build := s.runnerWithout(t, "prepare", "cleanup").Start(deadline(t), job)
				awaitScript(t, build)
				test.interrupt(t, build)
				result := build.Wait()
				checkOutputs(t, result)
				script, _ := result.Find(gitlab.StageBuildScript)
				if result.Status != test.status || script.ExitCode != test.exit || script.Killed || !slices.Equal(result.Stages(), test.stages) {
					t.Errorf("want %s, exit code %d and the stages %v, got %s", test.status, test.exit, test.stages, result)
				}
				// Without its client, a killed driver's script goes on until it notices.
				if after, ran := result.Find(gitlab.StageAfterScript); ran && test.exit >= 0 && after.Stdout != "state\n" {
					t.Errorf("after_script: %s", after)
				}
				if uploads, ran := result.Find(gitlab.StageUploadArtifactsOnFailure); ran && uploads.Stdout != "uploads\n" {
					t.Errorf("upload: %s", uploads)
				}
			})
		}
		t.Run("cleanup fails", func(t *testing.T) { s.checkCleanupFails(t, job) })
		t.Run("cleanup beside a script that does not end", func(t *testing.T) { s.checkCleanupBesideRun(t, job) })
	})
}

func signalTo(signal syscall.Signal) func(*testing.T, *gitlab.Build) {
	return func(t *testing.T, b *gitlab.Build) {
		if err := b.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
}

func awaitScript(t *testing.T, build *gitlab.Build) {
	t.Helper()
	if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
		t.Fatal(err)
	}
}

// checkCleanupFails has the cleanup of a job with a machine fail: one line of the job log
// says so, it is of no consequence for the job, and what it says is for the administrator.
func (s *site) checkCleanupFails(t *testing.T, job gitlab.Job) {
	t.Helper()
	good, err := os.ReadFile(s.Config)
	if err != nil {
		t.Fatal(err)
	}
	job.AfterScript = ""
	build := s.runnerWithout(t, "prepare").Start(deadline(t), job)
	awaitScript(t, build)
	other := *s.Site
	other.Config += ".good"
	s.Mode.WriteFile(t, other.Config, string(good))
	s.Mode.WriteFile(t, s.Config, "[defaults\n")
	(&site{Site: &other}).inGuest(t, job, "touch /tmp/go")
	result := build.Wait()
	s.Mode.WriteFile(t, s.Config, string(good))
	checkOutputs(t, result)
	if result.Status != gitlab.Success || strings.Count(result.JobLog, "WARNING: Cleanup script failed") != 1 || strings.Contains(result.JobLog, "config.toml") {
		t.Errorf("%s\nthe job log:\n%s", result, result.JobLog)
	}
	if !strings.Contains(result.RunnerLog, "config.toml: line 1") {
		t.Errorf("the runner's log does not say why:\n%s", result.RunnerLog)
	}
	if left := s.left(t); !strings.Contains(left, "machine") {
		t.Errorf("the machine is gone; left is %s", left)
	}
}

// checkCleanupBesideRun has GitLab Runner start cleanup beside a run that was told to end
// and did not: the machine goes, and the run with it.
func (s *site) checkCleanupBesideRun(t *testing.T, job gitlab.Job) {
	t.Helper()
	runner := s.runnerWithout(t, "prepare")
	runner.FinishTimeout = 500 * time.Millisecond
	build := runner.Start(deadline(t), job)
	awaitScript(t, build)
	run := one(t, "driver", s.isDriver("run"))
	run.signal(t, syscall.SIGSTOP)
	build.Cancel()
	until(t, "cleanup has removed the machine", func() bool { return len(processes(isGuest(machineOf(job)))) == 0 })
	run.signal(t, syscall.SIGCONT)
	result := build.Wait()
	checkOutputs(t, result)
	script, _ := result.Find(gitlab.StageBuildScript)
	cleanup, _ := result.Find("cleanup")
	if result.Status != gitlab.Canceled || script.Killed || script.ExitCode != gitlab.SystemFailureExitCode || cleanup.ExitCode != 0 {
		t.Errorf("%s", result)
	}
	if left := s.left(t); left != "nothing" {
		t.Errorf("left is %s", left)
	}
}

// What config says is one JSON object, whatever else is wrong with the host. It asks
// neither libvirt nor a registry.
func TestConfig(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		s.slow.Refuse(t)
		for _, test := range []struct {
			settings []string
			want     map[string]string
		}{
			{nil, map[string]string{"builds_dir": "/builds", "cache_dir": "/cache", "shell": "bash"}},
			{[]string{`shell = "zsh"`}, map[string]string{"builds_dir": "/builds", "cache_dir": "/cache", "shell": "bash"}},
			{[]string{`shell = "sh"`}, map[string]string{"builds_dir": "/builds", "cache_dir": "/cache", "shell": "sh"}},
			{[]string{`shell = "pwsh"`}, map[string]string{"builds_dir": "/builds", "cache_dir": "/cache", "shell": "pwsh"}},
			{[]string{`shell = "powershell"`, `guest_builds_dir = "C:\\b"`, `guest_cache_dir = "C:\\c"`}, map[string]string{"builds_dir": `C:\b`, "cache_dir": `C:\c`, "shell": "powershell"}},
		} {
			s.Configure(t, append(test.settings, `connect = "qemu+unix:///system?socket=/run/no-libvirt"`)...)
			e := s.runner(t).Stage(deadline(t), s.job(""), "config")
			var got struct {
				Driver map[string]string `json:"driver"`
			}
			if err := json.Unmarshal([]byte(e.Stdout), &got); err != nil || e.ExitCode != 0 || e.Stderr != "" {
				t.Fatalf("%v: %s", err, e)
			}
			if got.Driver["name"] != program || got.Driver["version"] == "" {
				t.Errorf("driver: %v", got.Driver)
			}
			all := map[string]any{}
			if err := json.Unmarshal([]byte(e.Stdout), &all); err != nil {
				t.Fatal(err)
			}
			if env, _ := all["job_env"].(map[string]any); env["SARDINE_MACHINE"] != machineOf(gitlab.Job{ID: 4711}) {
				t.Errorf("job_env: %v, want SARDINE_MACHINE", env)
			}
			delete(all, "driver")
			delete(all, "job_env")
			if fmt.Sprint(all) != fmt.Sprint(test.want) {
				t.Errorf("%q: got %v, want %v", test.settings, all, test.want)
			}
		}
	})
}

// A prepare that takes longer than prepare_exec_timeout is told to end, three times, and
// leaves nothing.
func TestPrepareTimeout(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		runner := s.runner(t)
		runner.StageTimeout = 3 * time.Second // its SSH server needs more alone
		result := runner.Run(deadline(t), s.jobUntil(duringSSHWait, 1))
		checkOutputs(t, result)
		if want := slices.Repeat([]string{"config", "prepare", "cleanup"}, 3); !slices.Equal(result.Stages(), want) || result.Status != gitlab.SystemFailure {
			t.Errorf("%s, stages %v, want %v", result.Status, result.Stages(), want)
		}
		if e, _ := result.Find("prepare"); !e.Terminated || e.Killed || e.ExitCode != gitlab.SystemFailureExitCode {
			t.Error(e)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}

// A prepare that was killed is tried again; cleanup has removed its machine.
func TestKilledPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode)
		job := s.jobUntil(duringBoot, 1)
		reached, _ := s.arrange(t, duringBoot, job)
		build := s.runner(t).Start(deadline(t), job)
		reached(nil)
		one(t, "driver", s.isDriver("prepare")).signal(t, syscall.SIGKILL)
		result := build.Wait()
		checkOutputs(t, result)
		want := []string{"config", "prepare", "cleanup", "config", "prepare", gitlab.StageBuildScript, "cleanup"}
		if !slices.Equal(result.Stages(), want) || result.Status != gitlab.Success || result.Executions[1].Signal != syscall.SIGKILL {
			t.Errorf("%s", result)
		}
	})
}
