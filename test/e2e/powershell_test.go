//go:build boot

package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
	"gitlab-sardine-executor/internal/testbed/gitlab"
)

// powerShellGuest has testdata/pwsh in place of PowerShell.
var powerShellGuest = changedGuest{change: `
cp "$1" usr/bin/pwsh
cp "$1" usr/bin/powershell
chmod 755 usr/bin/*
`}

func newPowerShellSite(t *testing.T, mode *testbed.Mode) *site {
	t.Helper()
	s := newSite(t, mode)
	standIn, err := filepath.Abs("testdata/pwsh")
	if err != nil {
		t.Fatal(err)
	}
	s.image = s.slow.registry.Image("vms/powershell:1")
	s.push(t, powerShellGuest.layout(t, standIn), s.registry.Image("vms/powershell:1"))
	return s
}

// The options with which PowerShell is started, and what it is told to do with its
// standard input: executor/guestshell/testdata/powershell has the text.
const powerShellOptions = " -NoProfile -NoLogo -InputFormat text -OutputFormat text -NonInteractive -ExecutionPolicy Bypass -EncodedCommand "

func powerShellText(t *testing.T, golden string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "executor", "guestshell", "testdata", "powershell", golden))
	if err != nil {
		t.Fatal(err)
	}
	return sum(string(text))
}

func sum(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// A whole job in a guest whose settings are those for Windows: everything that the driver
// does in a guest is done by PowerShell.
func TestPowerShell(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := newPowerShellSite(t, mode)
		dir := mode.Dir(t)
		prepare := mode.WriteFile(t, filepath.Join(dir, "prepare.ps1"), "\ufeff#stdout prepared\r\n")
		runner := mode.WriteFile(t, filepath.Join(dir, "gitlab-runner.exe"), "MZ\x00\r\n\xff"+strings.Repeat("runner\n", 1<<17))
		s.Configure(t, `shell = "powershell"`, `guest_builds_dir = "C:\\builds"`, `guest_cache_dir = "C:\\it's cached"`,
			fmt.Sprintf("prepare_script = %q", prepare), fmt.Sprintf("runner_binary = %q", runner))
		job := s.job("#stdout script of $env:CI_PROJECT_DIR\n#stderr to stderr")
		job.Variables = []gitlab.Variable{{Key: "GREETING", Value: "it's ‘me’"}}
		job.AfterScript = "#log"
		job.Scripts = map[string]string{gitlab.StageUploadArtifacts: "#log"}
		result := s.runnerWithout(t, "cleanup").Run(deadline(t), job)
		checkOutputs(t, result)
		if result.Status != gitlab.Success {
			t.Fatal(result)
		}
		// The only warning: what stands for gitlab-runner.exe is copied, as no program goes on the disk.
		if got, _ := result.Find("prepare"); !strings.Contains(got.Stderr, "prepared\r\n") || strings.Count(got.Stderr, "WARNING") != 1 ||
			!strings.Contains(got.Stderr, "is neither a program for Linux or Windows nor a script") {
			t.Errorf("prepare: %s", got)
		}
		if got, _ := result.Find(gitlab.StageBuildScript); got.Stdout != "script of $env:CI_PROJECT_DIR\r\n" || got.Stderr != "to stderr\r\n" {
			t.Errorf("script: %s", got)
		}
		binary, err := os.ReadFile(runner)
		if err != nil {
			t.Fatal(err)
		}
		log, _ := result.Find(gitlab.StageUploadArtifacts)
		for _, want := range []string{
			`dirs: $dirs = 'C:\builds', 'C:\it''s cached'` + "\n",
			"powershell" + powerShellOptions + powerShellText(t, "copy-runner.golden") + " " + sum(string(binary)) + "\n",
		} {
			if !strings.Contains(log.Stdout, want) {
				t.Errorf("the log lacks %s:\n%s", want, log.Stdout)
			}
		}
		// Directories, prepare_script, script, after_script, what the guest is, the
		// copy, the upload.
		if n := strings.Count(log.Stdout, "\npowershell -"); n+1 != 7 {
			t.Errorf("PowerShell was called %d times, want 7:\n%s", n+1, log.Stdout)
		}
		s.checkPowerShellScripts(t, job)
		s.mustCleanUp(t, job)
	})
}

// checkPowerShellScripts wants a script to arrive in PowerShell as it is, whatever it
// holds, its streams to be kept apart, and its status to pass.
func (s *site) checkPowerShellScripts(t *testing.T, job gitlab.Job) {
	t.Helper()
	var log strings.Builder
	for _, test := range []struct {
		name, script   string
		stdout, stderr string
		status         int
	}{
		{"plain", "#stdout hello\n", "hello\n", "", 0},
		{"both streams", "#stdout out\n#stderr err\n", "out\n", "err\n", 0},
		{"status", "#exit 7\n", "", "", 7},
		{"highest status", "#stderr oops\n#exit 255\n", "", "oops\n", 255},
		{"Windows' way", "\ufeff#\r\n$x = 'grüß ‘dich’ 🙂'\r\n#stdout grüß\r\n", "grüß\r\n", "", 0},
		{"open end", "#stdout a\n#stdout b", "a\nb", "", 0},
		{"nothing", "", "", "", 0},
		{"hostile", "'; exit 3\n\"; rm -rf /tmp/log\n$(rm /tmp/log) `rm /tmp/log`\n\x00\xff\x1b\n%PATH% ^&|<>\n", "", "", 0},
		{"1 MB", strings.Repeat("# grüß dich\r\n", 1<<20/14) + "#stdout end\n", "end\n", "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := s.script(t, job, gitlab.StageBuildScript, test.script)
			stderr, _, _ := strings.Cut(e.Stderr, "ERROR:")
			if e.Stdout != test.stdout || stderr != test.stderr {
				t.Errorf("stdout %q, stderr %q; want %q, %q", e.Stdout, e.Stderr, test.stdout, test.stderr)
			}
			exit, code := 0, ""
			if test.status != 0 {
				exit, code = gitlab.BuildFailureExitCode, fmt.Sprintln(test.status)
			}
			if e.ExitCode != exit || e.CodeFile != code {
				t.Errorf("want exit code %d and %q in the code file, got %s", exit, code, e)
			}
			fmt.Fprintf(&log, "powershell%s%s %s\n", powerShellOptions, powerShellText(t, "bootstrap.golden"), sum(test.script))
		})
	}
	const last = "#log\n"
	fmt.Fprintf(&log, "powershell%s%s %s\n", powerShellOptions, powerShellText(t, "bootstrap.golden"), sum(last))
	if e := s.script(t, job, gitlab.StageBuildScript, last); !strings.HasSuffix(e.Stdout, log.String()) {
		t.Errorf("PowerShell was called so:\n%s\nwant, at the end,\n%s", e.Stdout, log.String())
	}
}

// Settings that take a guest for what it is not are no riddle.
func TestPowerShellMissing(t *testing.T) {
	sessionOnly(t, func(t *testing.T, mode *testbed.Mode) {
		s := sharedSite(t, mode, `shell = "powershell"`, `guest_builds_dir = "C:\\builds"`, `guest_cache_dir = "C:\\cache"`)
		result := s.runner(t).Run(deadline(t), s.job("echo hello"))
		checkOutputs(t, result)
		prepare, _ := result.Find("prepare")
		for _, says := range []string{"the guest cannot run powershell", "exit status 127", "not found", `guest_builds_dir = "C:\\builds" is expected to run Windows`} {
			if !strings.Contains(prepare.Stderr, says) {
				t.Errorf("prepare does not say %q:\n%s", says, prepare.Stderr)
			}
		}
		if result.Status != gitlab.BuildFailure || result.ExitCode != 127 {
			t.Errorf("want a build failure with 127, got %s", result)
		}
	})
}
