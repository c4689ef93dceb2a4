package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
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
// cancelled gracefully, is followed by the stages that a failed job has, in the
// same machine.
func TestScriptTimeout(t *testing.T) {
	testbed.EachMode(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		job := s.jobUntil(duringScript, 1)
		job.Script = "echo state >/tmp/state\n" + job.Script
		job.AfterScript = "cat /tmp/state"
		job.Scripts = map[string]string{gitlab.StageUploadArtifactsOnFailure: "echo uploads"}
		build := s.runner(t).Start(deadline(t), job)
		if err := build.Log().WaitFor(deadline(t), "script runs"); err != nil {
			t.Fatal(err)
		}
		if err := build.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		result := build.Wait()
		checkOutputs(t, result)
		want := []string{"config", "prepare", gitlab.StageBuildScript, gitlab.StageAfterScript, gitlab.StageUploadArtifactsOnFailure, "cleanup"}
		if !slices.Equal(result.Stages(), want) {
			t.Errorf("stages %v, want %v", result.Stages(), want)
		}
		after, _ := result.Find(gitlab.StageAfterScript)
		uploads, _ := result.Find(gitlab.StageUploadArtifactsOnFailure)
		if after.Stdout != "state\n" || uploads.Stdout != "uploads\n" {
			t.Errorf("the stages after it: %s", result)
		}
		if left := s.left(t); left != "nothing" {
			t.Errorf("left is %s", left)
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
		job := s.job(`printf %s "$BIG_0$BIG_1$BIG_2" | wc -c; bash -c 'echo ${#BIG_2}'; printf %s "$CERTIFICATE"`)
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

// The author of a job can set every variable, and with none of them reach the
// machine of another job.
func TestOtherJobsMachine(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newHaltSite(t, mode)
		victim := s.jobUntil(duringBoot, 1)
		s.mustPrepare(t, victim)
		attacker := s.job("hostname")
		attacker.ID = 2
		attacker.Variables = []gitlab.Variable{
			{Key: "CI_JOB_ID", Value: "1"}, {Key: "CI_CONCURRENT_ID", Value: "1"},
			{Key: "JOB_RESPONSE_FILE", Value: "/dev/null"}, {Key: "GITLAB_SARDINE_EXECUTOR_CONFIG", Value: "/dev/null"},
			{Key: "CI_PROJECT_PATH", Value: "other/project"}, {Key: "CI_SERVER_URL", Value: "https://gitlab.example.com"},
		}
		for _, stage := range []string{"run", "cleanup"} {
			args := map[string][]string{"run": {mode.WriteFile(t, filepath.Join(mode.Dir(t), "script."), "echo I am in"), gitlab.StageBuildScript}}[stage]
			e := s.runner(t).Stage(deadline(t), attacker, stage, args...)
			if strings.Contains(e.Stdout, "I am in") {
				t.Errorf("a script ran in the machine of another job: %s", e)
			}
		}
		if len(processes(isGuest(machineOf(victim)))) != 1 {
			t.Error("the other job's machine is gone")
		}
		s.clear(t)
	})
}
