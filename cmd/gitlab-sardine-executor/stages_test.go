package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stageCommand is a stage of job 7, with further arguments; a test's own settings
// come first.
func stageCommand(config string, args ...string) *exec.Cmd {
	cmd := exec.Command("gitlab-sardine-executor", append([]string{"--config", config}, args...)...)
	cmd.Env = append(os.Environ(), "CUSTOM_ENV_CI_JOB_ID=7", "CUSTOM_ENV_CI_SERVER_URL=https://gitlab.example.com")
	return cmd
}

// slack is what a busy test host gets beyond the two seconds that a stage has after a
// signal.
const slack = 2 * time.Second

// settingsPipe are settings that a stage waits for: it has begun to read them when
// opened is called, and goes on when what that returns is called.
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

// endsWith waits for a command, at most for limit, and wants its exit status.
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

// GitLab Runner believes a stage that succeeds although it was told to end, and
// would go on with the job.
func TestNoSuccessAfterSignal(t *testing.T) {
	config, opened := settingsPipe(t)
	stage := stageCommand(config, "config")
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	release := opened()
	stage.Process.Signal(syscall.SIGTERM)
	time.Sleep(300 * time.Millisecond)
	release() // the settings are there after all
	endsWith(t, stage, 10*time.Second, 2)
}

// A stage ends in two seconds also when nobody reads what it says: its output is a
// full pipe.
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
	stage := stageCommand("/nonexistent", "prepare") // which it says, and waits
	stage.Stderr = writer
	if err := stage.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	time.Sleep(500 * time.Millisecond)
	stage.Process.Signal(syscall.SIGTERM)
	endsWith(t, stage, 2*time.Second+slack, 2)
}

// systemd sends SIGTERM to all processes of the runner's service, and the runner
// then sends its own: a stage that ends in an orderly way goes on to do so.
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
		stage.Process.Signal(syscall.SIGTERM)
		time.Sleep(100 * time.Millisecond)
	}
	release()
	endsWith(t, stage, 10*time.Second, 2)
	if want := "ERROR: cancelled by a signal (system failure)\n"; stderr.String() != want {
		t.Errorf("said %q, want %q", &stderr, want)
	}
}

// GitLab Runner reads the exit code of the job in a file that all stages share. It
// must not take that of an earlier script for one that never ran.
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

// No job fails of an administrator's log that cannot be opened, nor does its author
// read of it.
func TestStageWithoutItsLog(t *testing.T) {
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
