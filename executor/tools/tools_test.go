package tools

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/joblog"
	"gitlab-sardine-executor/executor/outcome"
	"gitlab-sardine-executor/vm/guestssh"
)

// A fakeGuest answers the scripts that it gets, and notes what they were for.
type fakeGuest struct {
	calls   []string
	mounts  []string // answers to mount-tools.sh
	version string   // of its gitlab-runner
}

func (g *fakeGuest) Run(_ context.Context, command guestssh.Command) (int, error) {
	stdin, err := io.ReadAll(command.Stdin)
	if err != nil {
		return 0, err
	}
	answer := ""
	switch text := string(stdin); {
	case strings.Contains(text, "mount_tools"):
		words := strings.Fields(command.Line)
		g.calls = append(g.calls, "mount for "+words[len(words)-1])
		answer, g.mounts = "gitlab-sardine-executor: "+g.mounts[0], g.mounts[1:]
	case strings.Contains(text, "--version"):
		g.calls = append(g.calls, "version")
		answer = "Welcome\nVersion:      " + g.version + "\nGit revision: 1"
	case strings.Contains(text, "uname"):
		g.calls = append(g.calls, "look")
		// It has one: nothing is copied.
	}
	fmt.Fprintln(command.Stdout, answer)
	return 0, nil
}

// What a guest is asked to do, once in a job, for the stages that need it.
func TestProvide(t *testing.T) {
	dir := t.TempDir()
	runner := filepath.Join(dir, "gitlab-runner")
	if err := os.WriteFile(runner, []byte("#!/bin/sh\necho 'Version:      17.9.3'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	const noRoot = "unusable it cannot mount /dev/vdz"
	for _, test := range []struct {
		name, setting string
		disk          bool
		guest         fakeGuest
		cancelled     bool
		want          []string // calls
		log           string
	}{
		{"off", config.RunnerOff, true, fakeGuest{}, false, nil, ""},
		{"linked", config.RunnerAuto, true, fakeGuest{mounts: []string{"linked"}}, false, []string{"mount for guest"}, ""},
		{"own, equal", config.RunnerAuto, true, fakeGuest{mounts: []string{"own"}, version: "17.9.0"}, false, []string{"mount for guest", "version"}, ""},
		{"own, older", config.RunnerAuto, true, fakeGuest{mounts: []string{"own", "linked"}, version: "16.11.0~beta\r"}, false,
			[]string{"mount for guest", "version", "mount for host"}, "gitlab-runner in the guest is 16.11.0~beta: this host's 17.9.3 is used instead"},
		{"own, without a version", config.RunnerAuto, true, fakeGuest{mounts: []string{"own", "linked"}}, false,
			[]string{"mount for guest", "version", "mount for host"}, "does not tell its version"},
		{"own is preferred", config.RunnerGuest, true, fakeGuest{mounts: []string{"own"}, version: "1.0.0"}, false, []string{"mount for guest"}, ""},
		{"not mounted", config.RunnerAuto, true, fakeGuest{mounts: []string{noRoot}}, false, []string{"mount for guest", "look"}, ""},
		{"no disk", config.RunnerAuto, false, fakeGuest{}, false, []string{"look"}, ""},
		{"cancelled, no disk", config.RunnerAuto, false, fakeGuest{}, true, nil, "the job was cancelled: gitlab-runner is not copied"},
		{"cancelled", config.RunnerAuto, true, fakeGuest{mounts: []string{"linked"}}, true, []string{"mount for guest"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log strings.Builder
			g := &Guest{Guest: &test.guest, Settings: config.Resolved{Shell: "bash", RunnerBinary: test.setting}, JobDir: t.TempDir(), Log: joblog.New(&log)}
			if test.disk {
				if err := Note(g.JobDir); err != nil {
					t.Fatal(err)
				}
			}
			if test.cancelled {
				if err := (outcome.Outcome{Stage: "build_script", Result: outcome.Cancelled}).Save(g.JobDir); err != nil {
					t.Fatal(err)
				}
			}
			for _, stage := range []string{"get_sources", "build_script", "archive_cache", "upload_artifacts_on_success"} {
				if err := g.Provide(t.Context(), stage, strings.NewReader("echo build")); err != nil {
					t.Fatalf("%s: %v", stage, err)
				}
			}
			if !slices.Equal(test.guest.calls, test.want) {
				t.Errorf("calls %q, want %q", test.guest.calls, test.want)
			}
			if !strings.Contains(log.String(), test.log) || test.log == "" && log.Len() > 0 {
				t.Errorf("log %q, want …%s…", log.String(), test.log)
			}
		})
	}
}

// A script that calls step-runner gets the disk, wherever the word stands.
func TestProvideStepRunner(t *testing.T) {
	guest := &fakeGuest{mounts: []string{"own"}}
	g := &Guest{Guest: guest, Settings: config.Resolved{Shell: "bash", RunnerBinary: config.RunnerAuto}, JobDir: t.TempDir(), Log: joblog.New(io.Discard)}
	if err := Note(g.JobDir); err != nil {
		t.Fatal(err)
	}
	const block = 1 << 20
	for _, before := range []int{10, block - 5, block + 1} {
		if text := strings.Repeat("x", before) + "step-runner ci"; !mentions(strings.NewReader(text), stepRunner) {
			t.Errorf("not found after %d bytes", before)
		}
	}
	script := strings.NewReader("step-runner ci\n")
	for range 2 {
		if err := g.Provide(t.Context(), "build_script", script); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := io.ReadAll(script); len(left) != len("step-runner ci\n") {
		t.Errorf("the script is %q now", left)
	}
	if len(guest.calls) != 1 {
		t.Errorf("calls %q", guest.calls)
	}
}

// Only programs for the guest's system are on the disk, and step-runner if it is for the
// same.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	this, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	windowsExe := write("runner.exe", peHeader)
	script, text := write("runner", "#!/bin/sh\n"), write("text", "hello")
	linux, windows := config.Resolved{GuestBuildsDir: "/builds"}, config.Resolved{GuestBuildsDir: `C:\builds`}
	for _, test := range []struct {
		name, setting string
		settings      config.Resolved
		architecture  string
		ok            bool
		err           string
	}{
		{"off", config.RunnerOff, linux, "", false, ""},
		{"none on this host", config.RunnerAuto, linux, "", false, ""},
		{"a program", this, linux, hostArchitecture(t), true, ""},
		{"a script", script, linux, "", true, ""},
		{"for Linux, in Windows", this, windows, "", false, ""},
		{"for Windows", windowsExe, windows, "x86_64", true, ""},
		{"for Windows, in Linux", windowsExe, linux, "", false, ""},
		{"no program", text, linux, "", false, "neither a program"},
		{"no file", filepath.Join(dir, "none"), linux, "", false, "none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PATH", t.TempDir())
			test.settings.RunnerBinary = test.setting
			disk, err := Disk(test.settings, filepath.Join(dir, "tools"))
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Fatalf("got %v, want %q", err, test.err)
			}
			if (disk != nil) != test.ok {
				t.Fatalf("disk: %+v", disk)
			}
			if disk != nil && (disk.Architecture != test.architecture || disk.Windows != test.settings.Windows()) {
				t.Errorf("%+v", disk)
			}
		})
	}
}

func hostArchitecture(t *testing.T) string {
	t.Helper()
	machine, err := exec.Command("uname", "-m").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(machine))
}

// peHeader is the beginning of a program for Windows on AMD64 without sections.
var peHeader = "MZ" + strings.Repeat("\x00", 0x3a) + "\x40\x00\x00\x00" + // offset of the signature
	"PE\x00\x00" + "\x64\x86" + strings.Repeat("\x00", 100)
