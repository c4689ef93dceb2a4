package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/executor/joblog"
)

// stageCommand is a stage of job 7 with a settings file and arguments.
func stageCommand(config string, args ...string) *exec.Cmd {
	cmd := exec.Command("gitlab-sardine-executor", append([]string{"--config", config}, args...)...)
	cmd.Env = append(os.Environ(), "CUSTOM_ENV_CI_JOB_ID=7", "CUSTOM_ENV_CI_SERVER_URL=https://gitlab.example.com")
	return cmd
}

// slack is the extra time for a busy test host, beyond the two seconds that a stage
// has after a signal.
const slack = 2 * time.Second

// settingsPipe makes a settings file that blocks its reader: opened returns when a stage
// reads it, and release lets the stage continue.
func settingsPipe(t *testing.T) (path string, opened func() (release func())) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "config.toml")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() func() {
		writer, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		return func() { writer.Close() }
	}
}

// endsWith waits for a command, for limit at most, and checks its exit status.
func endsWith(t *testing.T, cmd *exec.Cmd, limit time.Duration, want int) {
	t.Helper()
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	select {
	case <-ended:
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("ended with %v, want exit status %d", cmd.ProcessState, want)
		}
	case <-time.After(limit):
		t.Errorf("still runs after %v", limit)
		cmd.Process.Kill()
		<-ended
	}
}

// terminate sends SIGTERM, and waits until the process has handled it: the signal is not
// pending any more, and all threads sleep again, twice because a look is not atomic.
func terminate(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began, pid := time.Now(), cmd.Process.Pid
	for idle := 0; idle < 2; time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("the process does not handle the signal")
		}
		if idle++; isPending(t, pid, syscall.SIGTERM) || !sleeps(t, pid) {
			idle = 0
		}
	}
}

// sleeps reports whether all threads of a process sleep: state in proc_pid_stat(5).
func sleeps(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatal("no threads: ", err)
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if err != nil {
			return false // it has just ended
		}
		// The name, in parentheses, can hold anything.
		if _, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " "); rest[0] != 'S' {
			return false
		}
	}
	return true
}

// isPending reports whether a signal waits for a process: ShdPnd in proc_pid_status(5).
func isPending(t *testing.T, pid int, signal syscall.Signal) bool {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "ShdPnd:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return bits>>(signal-1)&1 == 1
		}
	}
	t.Fatalf("/proc/%d/status has no ShdPnd", pid)
	return false
}

// GitLab Runner believes a stage that succeeds after SIGTERM, and would continue the
// job.
func TestNoSuccessAfterSignal(t *testing.T) {
	config, opened := settingsPipe(t)
	stage := stageCommand(config, "config")
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	release := opened()
	terminate(t, stage)
	release()
	endsWith(t, stage, 10*time.Second, 2)
}

// A stage ends within two seconds even if its output is a full pipe without a reader.
func TestSignalWithFullOutput(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fd := int(writer.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = unix.Write(fd, []byte{'x'})
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	config, opened := settingsPipe(t)
	stage := stageCommand(config, "prepare") // fails without an image, and blocks when it says so
	stage.Stderr = writer
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	opened()() // the stage handles signals before it reads the settings
	stage.Process.Signal(syscall.SIGTERM)
	endsWith(t, stage, 2*time.Second+slack, 2)
}

// systemd sends SIGTERM to all processes of the runner's service, and the runner sends
// another: a stage still ends in an orderly way.
func TestSecondSignal(t *testing.T) {
	config, opened := settingsPipe(t)
	stage := stageCommand(config, "config")
	var stderr strings.Builder
	stage.Stderr = &stderr
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	release := opened()
	for range 3 {
		terminate(t, stage)
	}
	release()
	endsWith(t, stage, 10*time.Second, 2)
	if want := "Job ended by a signal: canceled, timed out, or the runner stopped\n"; stderr.String() != want {
		t.Errorf("said %q, want %q", &stderr, want)
	}
}

// GitLab Runner reads the exit code of the job from a file that all stages share. A
// script that never ran must not get the code of an earlier one.
func TestExitCodeOfNoScript(t *testing.T) {
	code := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(code, []byte("42\n"), 0o600); err != nil { // of get_sources
		t.Fatal(err)
	}
	stage := stageCommand("/nonexistent", "run", "/dev/null", "build_script")
	stage.Env = append(stage.Env, "BUILD_EXIT_CODE_FILE="+code)
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	endsWith(t, stage, 10*time.Second, 1)
	if text, err := os.ReadFile(code); string(text) != "1\n" {
		t.Errorf("the file says %q, %v", text, err)
	}
}

// A log that cannot be opened fails no job, and the job's log does not mention it.
func TestStageWithoutAdminLog(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte("[defaults]\nlog_file = '/dev/full/log'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stage := stageCommand(config, "config")
	output, err := stage.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(output), "{") || strings.Contains(string(output), "log") {
		t.Errorf("%v: %s", err, output)
	}
}

// A canceled job is no error in the administrator's log, and no failure in the job's.
func TestCancelIsNoFailure(t *testing.T) {
	err := errors.Join(fmt.Errorf("prepare: %w", failure.ErrCancelled), errors.New("remove the machine: busy"))
	var admin, log strings.Builder
	logStage(slog.New(slog.NewTextHandler(&admin, nil)), "run", job.Job{ID: "7"}, time.Second, err)
	if text := admin.String(); strings.Contains(text, "ERROR") || strings.Contains(text, "class=") || !strings.Contains(text, "stage canceled") {
		t.Errorf("the administrator's log: %s", text)
	}
	failure.Report(joblog.New(&log), err)
	if want := "Job ended by a signal: canceled, timed out, or the runner stopped\n"; log.String() != want {
		t.Errorf("the job's log: %q, want %q", log.String(), want)
	}
}
