//go:build boot

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// How scripts end, and what of them arrives: one machine runs them all.
func TestScriptEnds(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		job := s.jobUntil(duringBoot, 1)
		s.mustPrepare(t, job)
		every := make([]byte, 0, 256)
		for b := range 256 {
			every = append(every, byte(b))
		}
		for _, test := range []struct {
			name, stage, script string
			exit                int
			code                string // in BUILD_EXIT_CODE_FILE
			stdout              string
		}{
			{"success", gitlab.StageBuildScript, "echo done", 0, "", "done\n"},
			{"failure", gitlab.StageBuildScript, "exit 1", gitlab.BuildFailureExitCode, "1", ""},
			{"the system failure's own status", gitlab.StageBuildScript, "exit 2", gitlab.BuildFailureExitCode, "2", ""},
			{"highest status", gitlab.StageBuildScript, "exit 255", gitlab.BuildFailureExitCode, "255", ""},
			{"first failing command", gitlab.StageBuildScript, "set -e\nfalse\necho goes on", gitlab.BuildFailureExitCode, "1", ""},
			{"shell killed", gitlab.StageBuildScript, "kill -KILL $$", gitlab.BuildFailureExitCode, "137", ""},
			{"not a command", gitlab.StageBuildScript, "no-such-command", gitlab.BuildFailureExitCode, "127", ""},
			{"not a script", gitlab.StageBuildScript, "if then (", gitlab.BuildFailureExitCode, "2", ""},
			{"no output left to write to", gitlab.StageBuildScript, "exec >&- 2>&-; exit 5", gitlab.BuildFailureExitCode, "5", ""},
			{"daemon in the background", gitlab.StageBuildScript, "sleep 1000 &\necho started", 0, "", "started\n"},
			{"every byte", gitlab.StageBuildScript, "for i in $(seq 0 255); do printf \"\\\\x$(printf %x $i)\"; done", 0, "", string(every)},
			{"20 MB", gitlab.StageBuildScript, "head -c 20000000 /dev/zero | tr '\\0' x", 0, "", strings.Repeat("x", 20_000_000)},
			{"empty", gitlab.StageBuildScript, "", 0, "", ""},
			{"step of another name", "step_release", "echo $0 >/dev/null; exit 4", gitlab.BuildFailureExitCode, "4", ""},
			{"stage of the future", "no_such_stage", "echo runs", 0, "", "runs\n"},
		} {
			t.Run(test.name, func(t *testing.T) {
				script := mode.WriteFile(t, filepath.Join(mode.Dir(t), "script."), test.script)
				e := s.runner(t).Stage(deadline(t), job, "run", script, test.stage)
				if e.ExitCode != test.exit || strings.TrimSpace(e.CodeFile) != test.code || e.OutputHeld {
					t.Errorf("want exit code %d and %q in the code file, got %.1000s", test.exit, test.code, e.String())
				}
				if e.Stdout != test.stdout {
					t.Errorf("stdout is %d bytes, %.100q; want %d, %.100q", len(e.Stdout), e.Stdout, len(test.stdout), test.stdout)
				}
			})
		}
		if e := s.runner(t).Stage(deadline(t), job, "run", "/no/such/script", gitlab.StageBuildScript); e.ExitCode != gitlab.SystemFailureExitCode {
			t.Errorf("a script that is not there: %s", e)
		}
		s.clear(t)
	})
}

// A script that GitLab Runner ends, because its time is over or the job is
// canceled gracefully, is followed by the stages that a failed job has, in the
// same machine; and so is one that somebody else ends.
func TestScriptTimeout(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		for _, test := range []struct {
			name      string
			timeout   string // of the script
			interrupt func(*gitlab.Build)
			status    gitlab.Status
		}{
			{"its time is over", "3s", func(*gitlab.Build) {}, gitlab.SystemFailure},
			{"graceful cancel", "", (*gitlab.Build).CancelGracefully, gitlab.Canceled},
			{"SIGTERM", "", func(b *gitlab.Build) { _ = b.Signal(syscall.SIGTERM) }, gitlab.SystemFailure},
		} {
			t.Run(test.name, func(t *testing.T) {
				job := s.jobUntil(duringScript, 1)
				job.Script = "echo state >/tmp/state\n" + job.Script
				job.AfterScript = "cat /tmp/state; pgrep -f 'tmp/go' || echo nothing runs"
				job.Scripts = map[string]string{gitlab.StageUploadArtifactsOnFailure: "echo uploads"}
				if test.timeout != "" {
					job.Variables = []gitlab.Variable{{Key: "RUNNER_SCRIPT_TIMEOUT", Value: test.timeout}}
				}
				build := s.runner(t).Start(deadline(t), job)
				if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
					t.Fatal(err)
				}
				test.interrupt(build)
				result := build.Wait()
				checkOutputs(t, result)
				want := []string{"config", "prepare", gitlab.StageBuildScript, gitlab.StageAfterScript, gitlab.StageUploadArtifactsOnFailure, "cleanup"}
				if !slices.Equal(result.Stages(), want) || result.Status != test.status {
					t.Errorf("%s, stages %v, want %v", result.Status, result.Stages(), want)
				}
				script, _ := result.Find(gitlab.StageBuildScript)
				if script.ExitCode != gitlab.SystemFailureExitCode || script.Killed {
					t.Errorf("the script: %s", script)
				}
				after, _ := result.Find(gitlab.StageAfterScript)
				uploads, _ := result.Find(gitlab.StageUploadArtifactsOnFailure)
				if after.Stdout != "state\nnothing runs\n" || uploads.Stdout != "uploads\n" {
					t.Errorf("the stages after it: %s", result)
				}
				if left := s.left(t); left != "nothing" {
					t.Errorf("left is %s", left)
				}
			})
		}
	})
}

// The time of the whole job is over: the stage that runs is told to end, and only
// cleanup follows.
func TestJobTimeout(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		job := s.jobUntil(duringScript, 1)
		job.AfterScript = "echo after script"
		job.Timeout = 25 * time.Second // on a busy host it may be over before the guest is up
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		last := result.Executions[len(result.Executions)-2]
		if result.Status != gitlab.SystemFailure || !last.Terminated || last.Killed || last.ExitCode != gitlab.SystemFailureExitCode {
			t.Errorf("want a stage that was told to end, got %s", result)
		}
		if _, ran := result.Find(gitlab.StageAfterScript); ran {
			t.Errorf("a stage ran after the job's time: %v", result.Stages())
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
		}
	})
}

// Variables as large as Linux lets them be (MAX_ARG_STRLEN, 128 KiB with name and
// NUL), and of many lines, arrive whole.
func TestLargeVariables(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `accel = "tcg"`)
		job := s.job(`printf %s "$BIG_0$BIG_1$BIG_2" | wc -c; bash -c 'echo ${#BIG_2}'; cat "$CERTIFICATE"`)
		const size = 128<<10 - len("CUSTOM_ENV_BIG_0=") - 1
		for i := range 3 {
			job.Variables = append(job.Variables, gitlab.Variable{Key: fmt.Sprintf("BIG_%d", i), Value: strings.Repeat("x", size)})
		}
		const file = "-----BEGIN CERTIFICATE-----\n'quoted' $HOME\n-----END CERTIFICATE-----\n"
		job.Variables = append(job.Variables, gitlab.Variable{Key: "CERTIFICATE", Value: file, File: true})
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		script, _ := result.Find(gitlab.StageBuildScript)
		if want := fmt.Sprintf("%d\n%d\n%s", 3*size, size, file); result.Status != gitlab.Success || script.Stdout != want {
			t.Errorf("%s: %.300q, want %.300q", result.Status, script.Stdout, want)
		}
	})
}

// What config says: one JSON object, whatever else is wrong with the host. Nobody
// asks libvirt or a registry.
func TestConfig(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode)
		s.registry.Stop()
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
			s.configure(t, append(test.settings, `connect = "qemu+unix:///system?socket=/run/no-libvirt"`)...)
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

// The stages before and beside the script: each is tried as often as the author
// wants, and none sees the status of another. Files of file variables are there for
// all of them.
func TestStages(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `accel = "tcg"`)
		const content = "-----BEGIN CERTIFICATE-----\n'quoted' $HOME\n-----END CERTIFICATE-----\n"
		job := s.job(`cat "$CERTIFICATE"; echo "$CERTIFICATE"`)
		job.Variables = []gitlab.Variable{
			{Key: "GET_SOURCES_ATTEMPTS", Value: "3"}, {Key: "RESTORE_CACHE_ATTEMPTS", Value: "2"},
			{Key: "CERTIFICATE", Value: content, File: true},
		}
		job.Steps = []gitlab.Step{{Name: "release", Script: "echo released; exit 9"}}
		job.AfterScript = `ls "$CERTIFICATE"`
		job.Scripts = map[string]string{
			gitlab.StagePrepareScript: "echo Running on $(hostname)", gitlab.StageGetSources: "echo >>/tmp/n; [ $(wc -l </tmp/n) -ge 3 ] || exit 128",
			gitlab.StageClearWorktree: "echo cleared", gitlab.StageRestoreCache: "echo >>/tmp/m; [ $(wc -l </tmp/m) -ge 2 ]",
		}
		result := s.runner(t).Run(deadline(t), job)
		checkOutputs(t, result)
		want := []string{
			"config", "prepare", gitlab.StagePrepareScript, gitlab.StageGetSources, gitlab.StageClearWorktree, gitlab.StageGetSources, gitlab.StageGetSources,
			gitlab.StageRestoreCache, gitlab.StageRestoreCache, gitlab.StageBuildScript, "step_release", gitlab.StageAfterScript, gitlab.StageCleanupFileVariables, "cleanup",
		}
		if !slices.Equal(result.Stages(), want) {
			t.Errorf("stages %v, want %v", result.Stages(), want)
		}
		if result.Status != gitlab.BuildFailure || result.ExitCode != 9 {
			t.Errorf("want the status of the step, got %s", result)
		}
		const file = "/builds/group/project.tmp/CERTIFICATE\n"
		for stage, want := range map[string]string{gitlab.StageBuildScript: content + file, "step_release": "released\n", gitlab.StageAfterScript: file} {
			if e, _ := result.Find(stage); e.Stdout != want {
				t.Errorf("%s: %q, want %q", stage, e.Stdout, want)
			}
		}
		if e, _ := result.Find(gitlab.StageGetSources); e.ExitCode != 0 {
			t.Errorf("the last attempt: %s", e)
		}
		if e, _ := result.Find(gitlab.StageCleanupFileVariables); e.ExitCode != 0 {
			t.Errorf("%s", e)
		}
	})
}

// A prepare that takes longer than prepare_exec_timeout is told to end, three times,
// and leaves nothing.
func TestPrepareTimeout(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
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

// A prepare that was killed is tried again; cleanup has taken its machine away.
func TestKilledPrepare(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
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

// A cleanup that fails is told of in one line of the job log, and of no consequence
// for the job; what it has to say is for the administrator.
func TestCleanupFails(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		good, err := os.ReadFile(s.config)
		if err != nil {
			t.Fatal(err)
		}
		job := s.jobUntil(duringScript, 1)
		build := s.runner(t).Start(deadline(t), job)
		if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
		s.endScript(t, job)
		mode.WriteFile(t, s.config, "[defaults\n")
		result := build.Wait()
		checkOutputs(t, result)
		if result.Status != gitlab.Success || strings.Count(result.JobLog, "WARNING: Cleanup script failed") != 1 || strings.Contains(result.JobLog, "config.toml") {
			t.Errorf("%s\nthe job log:\n%s", result, result.JobLog)
		}
		if !strings.Contains(result.RunnerLog, "config.toml: line 1") {
			t.Errorf("the runner's log does not say why:\n%s", result.RunnerLog)
		}
		mode.WriteFile(t, s.config, string(good))
		if cleanup := s.runner(t).Stage(deadline(t), job, "cleanup"); cleanup.ExitCode != 0 || s.left(t) != "nothing" {
			t.Errorf("left is %s after %s", s.left(t), cleanup)
		}
	})
}

// GitLab Runner's own cleanup beside a run that was told to end and did not: the
// machine goes, and the run with it.
func TestCleanupBesideRun(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		job := s.jobUntil(duringScript, 1)
		runner := s.runner(t)
		runner.FinishTimeout = 500 * time.Millisecond
		build := runner.Start(deadline(t), job)
		if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
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
	})
}

// What is in the job's payload alone: who may pull, and how long the job, and so
// its machine, may live.
func TestPayload(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		private := testbed.StartRegistry(t, testbed.WithLogin("gitlab-ci-token", "s3cret"))
		mode.Trust(t, private)
		auth := mode.WriteFile(t, filepath.Join(mode.Dir(t), "auth.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`,
			private.Host, base64.StdEncoding.EncodeToString([]byte("gitlab-ci-token:s3cret"))))
		job := s.job("true")
		job.Image.Name = private.Image("vms/private:1")
		mode.Run(t, s.driver, "push", "--quiet", "--authfile", auth, "oci:"+guestLayout(t)+":1", job.Image.Name)

		result := s.runner(t).Run(deadline(t), job)
		failed, attempts := failures(result)
		if result.Status != gitlab.BuildFailure || attempts != 1 {
			t.Errorf("without credentials: %s", result)
		}
		checkErrorLine(t, failed.Stderr, []string{"access denied"})

		job.Timeout = 25 * time.Minute
		// Of no meaning for a machine.
		job.Image.Entrypoint, job.Image.Options = []string{"/bin/sh", "-c"}, json.RawMessage(`{"docker":{"platform":"arm64","user":"nobody"}}`)
		job.Credentials = []gitlab.Credentials{
			{Type: "git", URL: private.Host, Username: "gitlab-ci-token", Password: "other"},
			{Type: "registry", URL: private.Host, Username: "gitlab-ci-token", Password: "s3cret"},
		}
		s.mustPrepare(t, job)
		var record struct {
			Created time.Time `xml:"metadata>job>created"`
			Expires time.Time `xml:"metadata>job>expires"`
		}
		if err := xml.Unmarshal([]byte(mode.Virsh(t, "dumpxml", machineOf(gitlab.Job{ID: 4711}))), &record); err != nil {
			t.Fatal(err)
		}
		if life := record.Expires.Sub(record.Created); life != job.Timeout+time.Hour {
			t.Errorf("the machine may live for %v, want that of the job and an hour", life)
		}
		s.runner(t).Stage(deadline(t), job, "cleanup")
	})
}

// What a stage starts gets none of the job's variables: some of it outlives the
// job, and an environment that is just small enough for GitLab Runner to start the
// driver has no room for longer arguments.
func TestVariablesEndWithDriver(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		job := s.jobUntil(duringBoot, 1)
		job.Variables = []gitlab.Variable{{Key: "SECRET", Value: "sesame-of-this-job", Masked: true}}
		s.mustPrepare(t, job)
		defer s.runner(t).Stage(deadline(t), job, "cleanup")
		for _, p := range processes(func(p process) bool { return true }) {
			environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
			if err == nil && (bytes.Contains(environment, []byte("CUSTOM_ENV_")) || bytes.Contains(environment, []byte("sesame-of-this-job"))) {
				t.Errorf("%q has the job's variables", p.args)
			}
		}
	})
}

// An environment that is just small enough for the driver is so for all stages.
func TestLargestEnvironment(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newSite(t, mode, `accel = "tcg"`)
		const full = 128<<10 - len("CUSTOM_ENV_BIG_00=") - 1
		withBytes := func(size int) gitlab.Job {
			job := s.job(`echo ${#BIG_00}`)
			for i := 0; size > 0; i++ {
				part := min(size, full)
				job.Variables = append(job.Variables, gitlab.Variable{Key: fmt.Sprintf("BIG_%02d", i), Value: strings.Repeat("x", part)})
				size -= part
			}
			return job
		}
		// Somewhat more than any stage has: the path of a script, and directories.
		longest := strings.Repeat("/as-long-as-what-comes-with-a-script", 6)
		starts := func(size int) bool {
			e := s.runner(t).Stage(deadline(t), withBytes(size), "run", longest, gitlab.StageUploadArtifactsOnFailure)
			if e.Err != nil && !strings.Contains(e.Err.Error(), syscall.E2BIG.Error()) {
				t.Fatal(e.Err)
			}
			return e.Err == nil
		}
		const step = 64
		largest := sort.Search(8<<20/step, func(n int) bool { return !starts(n * step) }) - 1
		if largest < 200<<10/step {
			t.Fatalf("the driver starts with %d bytes at most", largest*step)
		}
		t.Logf("the driver starts with variables of %d bytes", largest*step)
		result := s.runner(t).Run(deadline(t), withBytes(largest*step))
		checkOutputs(t, result)
		script, _ := result.Find(gitlab.StageBuildScript)
		if result.Status != gitlab.Success || script.Stdout != fmt.Sprintln(full) {
			t.Errorf("%s, stdout %q: %.2000s", result.Status, script.Stdout, result)
		}
	})
}

// The author of a job can set every variable, and with none of them reach the
// machine of another job.
func TestOtherJobsMachine(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		victim := s.jobUntil(duringBoot, 1)
		s.mustPrepare(t, victim)
		sameProject := s.job("hostname")
		sameProject.ID = 2
		sameProject.Variables = []gitlab.Variable{
			{Key: "CI_JOB_ID", Value: "1"}, {Key: "CI_CONCURRENT_ID", Value: "1"},
			{Key: "JOB_RESPONSE_FILE", Value: "/dev/null"}, {Key: "GITLAB_SARDINE_EXECUTOR_CONFIG", Value: "/dev/null"},
			{Key: "CI_PROJECT_PATH", Value: "other/project"}, {Key: "CI_SERVER_URL", Value: "https://gitlab.example.com"},
		}
		// A job of the same number on another GitLab that this host serves.
		otherGitLab := s.job("hostname")
		otherGitLab.ID, otherGitLab.ServerURL = 1, "https://other.example.com"
		otherGitLab.FirstVariables = []gitlab.Variable{{Key: "CI_SERVER_URL", Value: "https://gitlab.example.com"}}
		otherGitLab.Variables = otherGitLab.FirstVariables
		for _, attacker := range []gitlab.Job{sameProject, otherGitLab} {
			for _, stage := range []string{"run", "cleanup"} {
				args := map[string][]string{"run": {mode.WriteFile(t, filepath.Join(mode.Dir(t), "script."), "echo I am in"), gitlab.StageBuildScript}}[stage]
				e := s.runner(t).Stage(deadline(t), attacker, stage, args...)
				if strings.Contains(e.Stdout, "I am in") {
					t.Errorf("a script ran in the machine of another job: %s", e)
				}
			}
		}
		if len(processes(isGuest(machineOf(victim)))) != 1 {
			t.Error("the other job's machine is gone")
		}
		s.clear(t)
	})
}
