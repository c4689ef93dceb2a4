package gitlab

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const shellConfig = `echo '{"driver":{"name":"shell","version":"1"},"builds_dir":"/builds","cache_dir":"/cache","job_env":{"MACHINE":"m1"},"unknown":1}'`

// shell is a runner whose driver does what stages say: "config" is the shell
// code of that stage, and so on.
func shell(t *testing.T, stages map[string]string) Runner {
	t.Helper()
	driver, err := filepath.Abs("testdata/driver")
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "ON_config=" + shellConfig, "ON_run=sh -e \"$1\""}
	for stage, code := range stages {
		env = append(env, "ON_"+stage+"="+code)
	}
	return Runner{Exec: driver, Env: env, Dir: t.TempDir()}
}

// deadline is the time that a wait may take at most.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	script := Job{Script: "true"}
	three := func(stages ...string) []string { return slices.Repeat(stages, 3) }
	whole := []string{"config", "prepare", StageBuildScript, "cleanup"}
	tests := []struct {
		name   string
		stages map[string]string
		status Status
		code   int
		ran    []string
	}{
		{"success", nil, Success, 0, whole},
		{"config fails the build", map[string]string{"config": "exit 1"}, BuildFailure, 0, []string{"config", "cleanup"}},
		{"config fails the system", map[string]string{"config": "exit 2"}, SystemFailure, 0, three("config", "cleanup")},
		{"config writes bad JSON", map[string]string{"config": "echo {"}, SystemFailure, 0, three("config", "cleanup")},
		{"config names no directories", map[string]string{"config": "true"}, SystemFailure, 0, three("config", "cleanup")},
		{"prepare fails the build", map[string]string{"prepare": "exit 1"}, BuildFailure, 0, []string{"config", "prepare", "cleanup"}},
		{"prepare fails the system", map[string]string{"prepare": "exit 2"}, SystemFailure, 0, three("config", "prepare", "cleanup")},
		{"prepare exits otherwise", map[string]string{"prepare": "exit 3"}, SystemFailure, 0, three("config", "prepare", "cleanup")},
		{"prepare is killed", map[string]string{"prepare": "kill -9 $$"}, SystemFailure, 0, three("config", "prepare", "cleanup")},
		{"prepare succeeds in the end", map[string]string{"prepare": `n=$(dirname $TMPDIR)/n; echo >>$n; [ $(wc -l <$n) = 3 ] || exit 2`}, Success, 0,
			append(slices.Repeat([]string{"config", "prepare", "cleanup"}, 2), whole...)},
		{"script fails", map[string]string{"run": `echo 7 >$BUILD_EXIT_CODE_FILE; exit 1`}, BuildFailure, 7, whole},
		{"script fails without a number", map[string]string{"run": `echo seven >$BUILD_EXIT_CODE_FILE; exit 1`}, BuildFailure, 1, whole},
		{"script fails without a file", map[string]string{"run": `exit 1`}, BuildFailure, 1, whole},
		{"run fails the system", map[string]string{"run": `echo 7 >$BUILD_EXIT_CODE_FILE; exit 2`}, SystemFailure, 0, whole},
		{"run exits with the script's code", map[string]string{"run": `exit 7`}, SystemFailure, 0, whole},
		{"cleanup fails", map[string]string{"cleanup": `exit 2`}, Success, 0, whole},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			result := shell(t, test.stages).Run(deadline(t), script)
			if result.Status != test.status || result.ExitCode != test.code {
				t.Errorf("got %s, want %s, exit code %d", result, test.status, test.code)
			}
			if diff := cmp.Diff(test.ran, result.Stages()); diff != "" {
				t.Errorf("stages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	const show = `echo "$PWD|$TMPDIR|$(stat -c %a $TMPDIR)|$(cat)|${MACHINE-unset}|$CUSTOM_ENV_CI_JOB_ID|$CUSTOM_ENV_CI_JOB_IMAGE|$CUSTOM_ENV_CI_BUILDS_DIR|$CUSTOM_ENV_CI_PROJECT_DIR|$BUILD_FAILURE_EXIT_CODE|$SYSTEM_FAILURE_EXIT_CODE|$(stat -c %a $JOB_RESPONSE_FILE)|$MINE|$CUSTOM_ENV_MINE" >&2;`
	runner := shell(t, map[string]string{"config": show + shellConfig, "prepare": show, "cleanup": show})
	job := Job{ID: 5, Image: &Image{Name: "registry/image:tag"}, Variables: []Variable{{Key: "MINE", Value: "author"}}}
	result := runner.Run(deadline(t), job)
	if result.Status != Success {
		t.Fatal(result)
	}
	for stage, want := range map[string]string{
		"config":  "unset|5|registry/image:tag|||1|2|600||author\n",
		"prepare": "m1|5|registry/image:tag|/builds|/builds/group/project|1|2|600||author\n",
		"cleanup": "m1|5|registry/image:tag|/builds|/builds/group/project|1|2|600||author\n",
	} {
		e, _ := result.Find(stage)
		if want := e.Dir + "|" + e.Dir + "|700||" + want; e.Stderr != want {
			t.Errorf("%s: got %q, want %q", stage, e.Stderr, want)
		}
		if _, err := os.Stat(e.Dir); !os.IsNotExist(err) {
			t.Errorf("%s: its directory is still there (%v)", stage, err)
		}
	}
}

func TestScripts(t *testing.T) {
	t.Parallel()
	job := Job{
		Variables:   []Variable{{Key: "QUOTED", Value: "it's $HOME"}},
		Script:      "echo \"$QUOTED in $PWD\"\nfalse\necho not reached",
		AfterScript: "echo after",
		Scripts:     map[string]string{StageGetSources: "echo sources", StageArchiveCacheOnFailure: "echo kept", StageArchiveCache: "echo archived"},
	}
	dir := t.TempDir()
	runner := shell(t, map[string]string{
		"config": `echo '{"builds_dir":"` + dir + `","cache_dir":"/cache"}'`,
		"run":    `echo "$2: ${1##*/} $(stat -c %a "$1")"; bash "$1" || { echo $? >$BUILD_EXIT_CODE_FILE; exit 1; }`,
	})
	result := runner.Run(deadline(t), job)
	want := strings.Join([]string{
		"get_sources: script. 700", "sources",
		"build_script: script. 700", "it's $HOME in " + dir + "/group/project",
		"after_script: script. 700", "after",
		"archive_cache_on_failure: script. 700", "kept", "",
	}, "\n")
	if diff := cmp.Diff(want, result.JobLog); diff != "" || result.Status != BuildFailure || result.ExitCode != 1 {
		t.Errorf("job log (-want +got):\n%s\n%s", diff, result)
	}
}

// The shell that config names gets a script in its language.
func TestPowerShellScripts(t *testing.T) {
	t.Parallel()
	job := Job{Variables: []Variable{{Key: "QUOTED", Value: "it's \"$HOME\" `x`\nüß"}}, Script: "echo one\necho two"}
	const check = "if(!$?) { Exit &{if($LASTEXITCODE) {$LASTEXITCODE} else {1}} }\n\n"
	const body = "$QUOTED=\"it`'s `\"`$HOME`\" ``x```nüß\"\n$env:QUOTED=$QUOTED\n" +
		"New-Item -ItemType directory -Force -Path \"C:\\builds/group/project\" | out-null\ncd \"C:\\builds/group/project\"\n" + check +
		"echo one\n" + check + "echo two\n" + check
	for name, want := range map[string]string{
		"pwsh":       "#!/usr/bin/env pwsh\n& {\n\n$ErrorActionPreference = \"Stop\"\n" + body + "\n}\n\n",
		"powershell": "\ufeff" + strings.ReplaceAll(body+"\n", "\n", "\r\n"),
	} {
		runner := shell(t, map[string]string{
			"config": `printf %s '{"builds_dir":"C:\\builds","cache_dir":"C:\\cache","shell":"` + name + `"}'`,
			"run":    `echo "${1##*/}" >&2; cat "$1"`,
		})
		result := runner.Run(deadline(t), job)
		e, _ := result.Find(StageBuildScript)
		// The variables of GitLab's own come before.
		_, begin, _ := strings.Cut(want, "$QUOTED=")
		head := strings.TrimSuffix(want, "$QUOTED="+begin)
		if e.Stderr != "script.ps1\n" || !strings.HasPrefix(e.Stdout, head) || !strings.HasSuffix(e.Stdout, "$QUOTED="+begin) {
			t.Errorf("%s: got\n%s%s\nwant\n%s", name, e.Stderr, e.Stdout, want)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		run     string
		killed  bool
		outcome int
	}{
		{"ends at once", `trap 'exit 2' TERM; ` + untilTerm, false, 2},
		{"deaf", `trap '' TERM; echo running; exec sleep 60`, true, -1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			runner := shell(t, map[string]string{"run": test.run})
			runner.GracefulKillTimeout = 100 * time.Millisecond
			if !test.killed {
				runner.GracefulKillTimeout = time.Minute
			}
			build := runner.Start(deadline(t), Job{Script: "true", AfterScript: "true"})
			if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
				t.Fatal(err)
			}
			build.Cancel()
			result := build.Wait()
			e, _ := result.Find(StageBuildScript)
			if result.Status != Canceled || !e.Terminated || e.Killed != test.killed || e.ExitCode != test.outcome {
				t.Errorf("got %s", result)
			}
			if diff := cmp.Diff([]string{"config", "prepare", StageBuildScript, "cleanup"}, result.Stages()); diff != "" {
				t.Errorf("stages (-want +got):\n%s", diff)
			}
		})
	}
}

// A job that is canceled while it is prepared is cleaned up, and not tried again.
func TestCancelPrepare(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{"prepare": `trap 'exit 2' TERM; ` + untilTerm})
	build := runner.Start(deadline(t), Job{Script: "true"})
	if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
		t.Fatal(err)
	}
	build.Cancel()
	result := build.Wait()
	if diff := cmp.Diff([]string{"config", "prepare", "cleanup"}, result.Stages()); diff != "" || result.Status != Canceled {
		t.Errorf("stages (-want +got):\n%s\n%s", diff, result)
	}
}

// The signal of somebody else reaches the whole process group; the runner goes on.
func TestSignal(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{"run": `trap 'exit 2' TERM; ` + untilTerm})
	build := runner.Start(deadline(t), Job{Script: "true"})
	if err := build.Log().WaitFor(deadline(t), "running"); err != nil {
		t.Fatal(err)
	}
	if err := build.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	result := build.Wait()
	if e, _ := result.Find(StageBuildScript); result.Status != SystemFailure || e.Terminated || e.ExitCode != 2 {
		t.Errorf("got %s", result)
	}
}

// A daemon that inherits the output keeps the stage from ending.
func TestOutputHeld(t *testing.T) {
	t.Parallel()
	runner := shell(t, map[string]string{"cleanup": "kill $(cat $PIDFILE)"})
	pidFile := filepath.Join(t.TempDir(), "pid")
	runner.Env = append(runner.Env, "PIDFILE="+pidFile, "ON_prepare=sleep 60 & echo $! >$PIDFILE")
	runner.OutputTimeout = 200 * time.Millisecond
	result := runner.Run(deadline(t), Job{})
	e, _ := result.Find("prepare")
	if result.Status != Success || !e.OutputHeld || e.OutputDelay < runner.OutputTimeout {
		t.Errorf("got %s", result)
	}
	if e, _ := result.Find("config"); e.OutputHeld {
		t.Errorf("config held its output: %s", e)
	}
}
