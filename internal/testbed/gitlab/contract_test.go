package gitlab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Each attempt to prepare has a directory and a payload of its own, which its
// stages share, and which are gone after its cleanup. Between two attempts passes
// some time.
func TestAttempts(t *testing.T) {
	t.Parallel()
	const show = `echo "$PWD $(stat -c %i $JOB_RESPONSE_FILE)" >&2;`
	runner := shell(t, map[string]string{"config": show + shellConfig, "prepare": show + "exit 2", "cleanup": show})
	runner.PrepareWait = 150 * time.Millisecond
	began := time.Now()
	result := runner.Run(deadline(t), Job{})
	if took := time.Since(began); result.Status != SystemFailure || took < 2*runner.PrepareWait {
		t.Errorf("%s after %v", result, took)
	}
	seen := map[string]int{}
	for _, e := range result.Executions {
		dir, _, _ := strings.Cut(e.Stderr, " ")
		if dir != e.Dir {
			t.Errorf("ran in %s: %s", dir, e)
		}
		seen[e.Stderr]++
		if _, err := os.Stat(e.Dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", e.Dir, err)
		}
	}
	for what, times := range seen {
		if len(seen) != PrepareAttempts || times != 3 {
			t.Errorf("%d attempts; %d stages had %s", len(seen), times, what)
		}
	}
}

// The environment of a stage, from the runner's own to the job's: the last value
// of a name wins.
func TestEnvironmentOrder(t *testing.T) {
	t.Parallel()
	show := `echo "$MACHINE|$BUILD_FAILURE_EXIT_CODE|$CUSTOM_ENV_MACHINE|$CUSTOM_ENV_FF_USE_FASTZIP|${CUSTOM_ENV_CI_JOB_IMAGE-none}|$CUSTOM_ENV_CI_JOB_SERVICES|$RUNNERS" >&2;`
	runner := shell(t, map[string]string{
		"config":  show + `echo '{"builds_dir":"/b","cache_dir":"/c","job_env":{"MACHINE":"of config","BUILD_FAILURE_EXIT_CODE":"5"}}'`,
		"prepare": show,
		"cleanup": show,
	})
	runner.Env = append(runner.Env, "MACHINE=of the runner", "BUILD_FAILURE_EXIT_CODE=9", "CUSTOM_ENV_MACHINE=of the runner", "RUNNERS=own")
	job := Job{Variables: []Variable{{Key: "MACHINE", Value: "of the job"}, {Key: "RUNNERS", Value: "of the job"}}}
	result := runner.Run(deadline(t), job)
	for stage, want := range map[string]string{
		"config":  "of the runner|1|of the job|false|none||own\n",
		"prepare": "of config|5|of the job|false|none||own\n",
		"cleanup": "of config|5|of the job|false|none||own\n",
	} {
		if e, _ := result.Find(stage); e.Stderr != want {
			t.Errorf("%s: got %q, want %q", stage, e.Stderr, want)
		}
	}

	// Services are told of, and not started.
	job.Services = []Service{{Name: "postgres:16", Alias: "db", Command: []string{"-c", "fsync=off"}, Variables: []Variable{{Key: "K", Value: "V"}}}}
	result = runner.Run(deadline(t), job)
	e, _ := result.Find("prepare")
	var services []map[string]any
	if err := json.Unmarshal([]byte(strings.Split(e.Stderr, "|")[5]), &services); err != nil || len(services) != 1 {
		t.Fatalf("%v, %v: %s", services, err, e.Stderr)
	}
	for _, key := range []string{"name", "alias", "entrypoint", "command", "variables"} {
		if _, ok := services[0][key]; !ok {
			t.Errorf("no %s in %v", key, services[0])
		}
	}
	if want := []string{"config", "prepare", "cleanup"}; !slices.Equal(result.Stages(), want) {
		t.Errorf("stages %v, want %v", result.Stages(), want)
	}
}

// The payload has what the environment has not.
func TestPayload(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{"config": `cat $JOB_RESPONSE_FILE >&2; ` + shellConfig})
	result := runner.Run(deadline(t), Job{
		ID: 7, Timeout: 90 * time.Second,
		Image:       &Image{Name: "i:1", PullPolicies: []string{"never"}, Entrypoint: []string{"/e"}, Options: json.RawMessage(`{"docker":{"platform":"p"}}`)},
		Credentials: []Credentials{{Type: "registry", URL: "r.example", Username: "u", Password: "p"}},
		Variables:   []Variable{{Key: "CERTIFICATE", Value: "text", File: true}},
	})
	e, _ := result.Find("config")
	var payload struct {
		ID         int64         `json:"id"`
		Image      Image         `json:"image"`
		Creds      []Credentials `json:"credentials"`
		Variables  []Variable    `json:"variables"`
		RunnerInfo struct {
			Timeout int `json:"timeout"`
		} `json:"runner_info"`
	}
	if err := json.Unmarshal([]byte(e.Stderr), &payload); err != nil {
		t.Fatal(err)
	}
	if payload.ID != 7 || payload.RunnerInfo.Timeout != 90 || payload.Image.PullPolicies[0] != "never" || payload.Image.Entrypoint[0] != "/e" ||
		!strings.Contains(string(payload.Image.Options), "platform") || len(payload.Creds) != 1 || payload.Creds[0].Password != "p" ||
		!slices.Contains(payload.Variables, Variable{Key: "CERTIFICATE", Value: "text", File: true}) {
		t.Errorf("payload:\n%s", e.Stderr)
	}
}

// Of a file variable, stages get the content, and scripts a path; a stage of its
// own removes the file.
func TestFileVariables(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runner := shell(t, map[string]string{
		"config":  `echo '{"builds_dir":"` + dir + `","cache_dir":"/cache"}'`,
		"prepare": `printf %s "$CUSTOM_ENV_CERTIFICATE"`,
	})
	const content = "line 'one'\nline $two\n"
	result := runner.Run(deadline(t), Job{
		Variables: []Variable{{Key: "CERTIFICATE", Value: content, File: true}},
		Script:    `echo "$CERTIFICATE"; cat "$CERTIFICATE"`,
	})
	file := filepath.Join(dir, "group/project.tmp/CERTIFICATE")
	prepare, _ := result.Find("prepare")
	script, _ := result.Find(StageBuildScript)
	if prepare.Stdout != content || script.Stdout != file+"\n"+content {
		t.Errorf("%s", result)
	}
	if stages := result.Stages(); stages[len(stages)-2] != StageCleanupFileVariables {
		t.Errorf("stages %v", stages)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", file, err)
	}
}

// A variable that is too large for Linux breaks every stage.
func TestTooLargeVariable(t *testing.T) {
	result := shell(t, nil).Run(deadline(t), Job{Variables: []Variable{{Key: "BIG", Value: strings.Repeat("x", 128<<10)}}})
	if result.Status != SystemFailure || len(result.Executions) != 2*PrepareAttempts {
		t.Errorf("%s with %d executions", result.Status, len(result.Executions))
	}
	for _, e := range result.Executions {
		if e.Err == nil || !strings.Contains(e.Err.Error(), syscall.E2BIG.Error()) {
			t.Errorf("want E2BIG, got %v", e.Err)
		}
	}
}

// What config does not say stands in config.toml.
func TestConfigFallsBack(t *testing.T) {
	const show = `echo "$CUSTOM_ENV_CI_BUILDS_DIR $CUSTOM_ENV_CI_PROJECT_DIR" >&2`
	for _, test := range []struct{ config, want string }{
		{"true", "/own/builds /own/builds/group/project\n"},
		{"echo '{}'", "/own/builds /own/builds/group/project\n"},
		{`echo '{"builds_dir":"/b"}'`, "/b /b/group/project\n"},
		{`echo '{"builds_dir":"/b","builds_dir_is_shared":true}'`, "/b /b/t3_xSrNUp/0/group/project\n"},
		{`echo '{"builds_dir":"/b","hostname":"h","something":{"new":[1]}}'`, "/b /b/group/project\n"},
	} {
		runner := shell(t, map[string]string{"config": test.config, "prepare": show})
		runner.BuildsDir, runner.CacheDir = "/own/builds", "/own/cache"
		result := runner.Run(deadline(t), Job{})
		if e, _ := result.Find("prepare"); e.Stderr != test.want || result.Status != Success {
			t.Errorf("%s: got %q, want %q: %s", test.config, e.Stderr, test.want, result)
		}
	}
}

// The order of the stages: each only if there is something to do.
func TestStageOrder(t *testing.T) {
	t.Parallel()
	all := map[string]string{}
	for _, stage := range []string{
		StagePrepareScript, StageGetSources, StageClearWorktree, StageRestoreCache, StageDownloadArtifacts, StageAfterScript,
		StageArchiveCache, StageArchiveCacheOnFailure, StageUploadArtifacts, StageUploadArtifactsOnFailure, StageCleanupFileVariables,
	} {
		all[stage] = "true"
	}
	before := []string{"config", "prepare", StagePrepareScript, StageGetSources, StageRestoreCache, StageDownloadArtifacts, StageBuildScript}
	for _, test := range []struct {
		name, script string
		after        []string
	}{
		{"success", "true", []string{"step_release", StageAfterScript, StageArchiveCache, StageUploadArtifacts, StageCleanupFileVariables, "cleanup"}},
		{"failure", "exit 3", []string{StageAfterScript, StageArchiveCacheOnFailure, StageUploadArtifactsOnFailure, StageCleanupFileVariables, "cleanup"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			runner := inShell(t)
			result := runner.Run(deadline(t), Job{Scripts: all, Script: test.script, Steps: []Step{{"release", "true"}}})
			if diff := cmp.Diff(slices.Concat(before, test.after), result.Stages()); diff != "" {
				t.Errorf("stages (-want +got):\n%s", diff)
			}
		})
	}
	// What removes file variables fails no job.
	all[StageCleanupFileVariables] = "exit 3"
	result := inShell(t).Run(deadline(t), Job{Scripts: all, Script: "true"})
	if result.Status != Success || !strings.Contains(result.JobLog, "WARNING: Error while executing file based variables removal script") {
		t.Errorf("a failed removal of file variables: %s\n%s", result, result.JobLog)
	}
	// The status comes after cleanup.
	runner := shell(t, map[string]string{"cleanup": "sleep 0.3"})
	began := time.Now()
	if result := runner.Run(deadline(t), Job{}); time.Since(began) < 300*time.Millisecond {
		t.Errorf("the job did not wait for its cleanup: %s", result)
	}
}

// inShell is a runner whose driver runs scripts in bash, here.
func inShell(t *testing.T) Runner {
	t.Helper()
	return shell(t, map[string]string{
		"config": `echo '{"builds_dir":"` + t.TempDir() + `","cache_dir":"/cache"}'`,
		"run":    `bash "$1" || { echo $? >$BUILD_EXIT_CODE_FILE; exit $BUILD_FAILURE_EXIT_CODE; }`,
	})
}

// Stages before the script are tried again as often as the author wants, whatever
// their failure was, and after the first failure of get_sources its directory is
// cleared.
func TestScriptAttempts(t *testing.T) {
	t.Parallel()
	scripts := func() map[string]string {
		return map[string]string{
			StageGetSources: "echo >>n; [ $(wc -l <n) -ge 4 ]", StageClearWorktree: "true",
			StageRestoreCache: "echo >>m; [ $(wc -l <m) -ge 2 ]", StageDownloadArtifacts: "echo >>l; [ $(wc -l <l) -ge 2 ]",
		}
	}
	variables := func(sources, cache, artifacts string) []Variable {
		return []Variable{{Key: "GET_SOURCES_ATTEMPTS", Value: sources}, {Key: "RESTORE_CACHE_ATTEMPTS", Value: cache}, {Key: "ARTIFACT_DOWNLOAD_ATTEMPTS", Value: artifacts}}
	}
	sources := []string{"config", "prepare", StageGetSources, StageClearWorktree, StageGetSources, StageGetSources}
	for _, test := range []struct {
		name      string
		variables []Variable
		status    Status
		stages    []string
	}{
		{"enough", variables("4", "2", "10"), Success,
			append(slices.Clone(sources), StageGetSources, StageRestoreCache, StageRestoreCache, StageDownloadArtifacts, StageDownloadArtifacts, StageBuildScript, "cleanup")},
		{"too few", variables("3", "", ""), BuildFailure, append(slices.Clone(sources), "cleanup")},
		{"one", nil, BuildFailure, []string{"config", "prepare", StageGetSources, "cleanup"}},
		{"out of range", variables("11", "", ""), SystemFailure, []string{"config", "prepare", "cleanup"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			result := inShell(t).Run(deadline(t), Job{Variables: test.variables, Scripts: scripts(), Script: "true"})
			if diff := cmp.Diff(test.stages, result.Stages()); diff != "" || result.Status != test.status {
				t.Errorf("%s, stages (-want +got):\n%s", result.Status, diff)
			}
		})
	}
	runner := shell(t, map[string]string{"run": "exit $SYSTEM_FAILURE_EXIT_CODE"})
	result := runner.Run(deadline(t), Job{Variables: variables("2", "", ""), Scripts: map[string]string{StageGetSources: "true"}})
	if want := []string{"config", "prepare", StageGetSources, StageGetSources, "cleanup"}; !slices.Equal(result.Stages(), want) {
		t.Errorf("after a system failure: stages %v, want %v", result.Stages(), want)
	}
}

// One file holds the status of all scripts, and nobody empties it.
func TestCodeFileIsShared(t *testing.T) {
	runner := shell(t, map[string]string{"run": `[ $2 = build_script ] || echo 5 >$BUILD_EXIT_CODE_FILE; [ $2 != build_script ] || exit $BUILD_FAILURE_EXIT_CODE`})
	result := runner.Run(deadline(t), Job{Scripts: map[string]string{StageGetSources: "true"}, Script: "true"})
	if result.Status != BuildFailure || result.ExitCode != 5 {
		t.Errorf("want the number of the stage before, got %s", result)
	}
}

// Who sees what of a stage's output, and of its failure.
func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{
		"config":  `echo config-err >&2; ` + shellConfig,
		"prepare": `echo prepare-out; echo prepare-err >&2; echo "$CUSTOM_ENV_SECRET $CUSTOM_ENV_CI_JOB_TOKEN"`,
		"run":     `echo run-out; echo run-err >&2; sleep 0.1; printf 'se'; sleep 0.1; echo 'same'`,
		"cleanup": `echo cleanup-out; echo cleanup-err >&2; exit 2`,
	})
	result := runner.Run(deadline(t), Job{Script: "true", Variables: []Variable{{Key: "SECRET", Value: "sesame", Masked: true}}})
	if result.Status != Success {
		t.Errorf("a cleanup that failed changed the result: %s", result)
	}
	for _, text := range []string{"config-err", "prepare-out", "prepare-err", "run-out", "run-err", "[MASKED] [MASKED]", "\n[MASKED]\n"} {
		if !strings.Contains(result.JobLog, text) {
			t.Errorf("the job log lacks %q:\n%s", text, result.JobLog)
		}
	}
	for _, text := range []string{"cleanup-out", "cleanup-err", "builds_dir", "sesame", jobToken} {
		if strings.Contains(result.JobLog, text) {
			t.Errorf("the job log has %q:\n%s", text, result.JobLog)
		}
	}
	if n := strings.Count(result.JobLog, "WARNING: Cleanup script failed"); n != 1 {
		t.Errorf("%d warnings of cleanup:\n%s", n, result.JobLog)
	}
	if !strings.Contains(result.RunnerLog, "cleanup-out\n") || !strings.Contains(result.RunnerLog, "cleanup-err\n") {
		t.Errorf("the runner's log: %q", result.RunnerLog)
	}
}

// untilTerm waits for a signal, which ends the whole group.
const untilTerm = `echo running; while :; do sleep 0.5; done`

// A stage whose time is over gets SIGTERM, and its status is believed all the
// same. Scripts have the time of the job.
func TestStageTimeout(t *testing.T) {
	t.Parallel()
	for status, want := range map[int][]string{
		0: {"config", "prepare", StageBuildScript, "cleanup"},
		1: {"config", "prepare", "cleanup"},
		2: slices.Repeat([]string{"config", "prepare", "cleanup"}, 3),
	} {
		runner := shell(t, map[string]string{"prepare": fmt.Sprintf("trap 'exit %d' TERM; %s", status, untilTerm), "run": "sleep 0.6"})
		runner.StageTimeout = 300 * time.Millisecond
		result := runner.Run(deadline(t), Job{Script: "true"})
		if diff := cmp.Diff(want, result.Stages()); diff != "" {
			t.Errorf("exit %d: stages (-want +got):\n%s", status, diff)
		}
		if e, _ := result.Find("prepare"); !e.Terminated || e.Killed || e.ExitCode != status {
			t.Errorf("exit %d: %s", status, e)
		}
	}
}

// The time of the script is over, of after_script, or of the whole job. Each is tried
// with the timeout, and the first and the last by the test's own choice of the moment.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	whole := []string{"config", "prepare", StageBuildScript, StageAfterScript, StageUploadArtifactsOnFailure, "cleanup"}
	short := []string{"config", "prepare", StageBuildScript, "cleanup"}
	for _, test := range []struct {
		name   string
		job    Job
		expire func(*Build)
		killed string // stage that is told to end
		stages []string
	}{
		{"script", Job{Script: "slow", AfterScript: "true", Variables: []Variable{{Key: "RUNNER_SCRIPT_TIMEOUT", Value: "2s"}}}, nil, StageBuildScript, whole},
		{"script, now", Job{Script: "slow", AfterScript: "true"}, (*Build).ExpireScript, StageBuildScript, whole},
		{"after_script", Job{Script: "true", AfterScript: "slow", Variables: []Variable{{Key: "RUNNER_AFTER_SCRIPT_TIMEOUT", Value: "2s"}}}, nil, StageAfterScript,
			[]string{"config", "prepare", StageBuildScript, StageAfterScript, StageUploadArtifacts, "cleanup"}},
		{"job, now", Job{Script: "slow", AfterScript: "true"}, (*Build).Expire, StageBuildScript, short},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			runner := shell(t, map[string]string{"run": `grep -q slow $1 || exit 0; trap 'exit 2' TERM; ` + untilTerm})
			test.job.Scripts = map[string]string{StageUploadArtifactsOnFailure: "true", StageUploadArtifacts: "true"}
			build := runner.Start(deadline(t), test.job)
			if test.expire != nil {
				if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
					t.Fatal(err)
				}
				test.expire(build)
			}
			checkExpired(t, build.Wait(), test.killed, test.stages)
		})
	}
	t.Run("job", func(t *testing.T) {
		t.Parallel()
		runner := shell(t, map[string]string{"run": `trap 'exit 2' TERM; ` + untilTerm})
		result := runner.Run(deadline(t), Job{Script: "true", AfterScript: "true", Timeout: 2 * time.Second})
		// On a busy host it can be over before the script runs.
		stages := result.Stages()
		if result.Status != SystemFailure || stages[len(stages)-1] != "cleanup" || slices.Contains(stages, StageAfterScript) {
			t.Error(result)
		}
	})
}

func checkExpired(t *testing.T, result Result, killed string, stages []string) {
	t.Helper()
	if diff := cmp.Diff(stages, result.Stages()); diff != "" {
		t.Errorf("stages (-want +got):\n%s", diff)
	}
	if e, _ := result.Find(killed); !e.Terminated || e.ExitCode != 2 || killed == StageBuildScript && result.Status != SystemFailure {
		t.Errorf("%s", result)
	}
}

// A graceful cancel ends the script; what follows a script that failed follows.
func TestGracefulCancel(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{"run": `[ $2 = build_script ] || exit 0; trap 'exit 2' TERM; ` + untilTerm})
	build := runner.Start(deadline(t), Job{Script: "true", AfterScript: "true", Scripts: map[string]string{StageUploadArtifactsOnFailure: "true"}})
	if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
		t.Fatal(err)
	}
	build.CancelGracefully()
	result := build.Wait()
	want := []string{"config", "prepare", StageBuildScript, StageAfterScript, StageUploadArtifactsOnFailure, "cleanup"}
	if diff := cmp.Diff(want, result.Stages()); diff != "" || result.Status != Canceled {
		t.Errorf("%s, stages (-want +got):\n%s", result.Status, diff)
	}

	runner = shell(t, map[string]string{"prepare": `trap 'exit 2' TERM; ` + untilTerm})
	build = runner.Start(deadline(t), Job{Script: "true", AfterScript: "true"})
	if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
		t.Fatal(err)
	}
	build.CancelGracefully()
	result = build.Wait()
	if want := []string{"config", "prepare", "cleanup"}; !slices.Equal(result.Stages(), want) || result.Status != Canceled {
		t.Errorf("during prepare: %s, stages %v, want %v", result.Status, result.Stages(), want)
	}
}

// Cleanup is not kept waiting for ever by a script that does not end.
func TestCleanupBesideRun(t *testing.T) {
	t.Parallel()
	flag := filepath.Join(t.TempDir(), "cleaned")
	runner := shell(t, map[string]string{
		"run":     `trap '' TERM; echo running; while ! [ -e ` + flag + ` ]; do sleep 0.05; done; exit 2`,
		"cleanup": "touch " + flag,
	})
	runner.FinishTimeout = 200 * time.Millisecond
	build := runner.Start(deadline(t), Job{Script: "true"})
	if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
		t.Fatal(err)
	}
	build.Cancel()
	result := build.Wait()
	if want := []string{"config", "prepare", StageBuildScript, "cleanup"}; !slices.Equal(result.Stages(), want) || result.Status != Canceled {
		t.Errorf("%s, stages %v", result.Status, result.Stages())
	}
	if e, _ := result.Find(StageBuildScript); e.Killed || e.ExitCode != 2 {
		t.Errorf("the script did not outlive cleanup: %s", e)
	}
}
