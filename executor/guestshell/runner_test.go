package guestshell

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
)

func TestAnswer(t *testing.T) {
	for stdout, want := range map[string]string{
		"":                                    "",
		"Welcome\n":                           "",
		answerMark + "Linux x86_64\n":         "Linux x86_64",
		answerMark + "Linux x86_64":           "Linux x86_64",
		answerMark + "Windows AMD64\r\n":      "Windows AMD64",
		answerMark + "\nlogged out\n":         "",
		"Welcome\n" + answerMark + "a\nBye\n": "a",
		"no line feed" + answerMark + "a\n":   "a",
	} {
		if got := answer(stdout); got != want {
			t.Errorf("%q: got %q, want %q", stdout, got, want)
		}
	}
}

// The profile or the start-up file of a guest's shell may print a greeting.
func TestRunnerQuestionsToAShellThatGreets(t *testing.T) {
	home := t.TempDir()
	const greeting = "echo Welcome, `uname -sm`\n"
	for _, name := range []string{".profile", ".bashrc"} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(greeting), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings := config.Resolved{Shell: "bash", GuestBuildsDir: "/var/tmp/builds"}
	ask := func(line, stdin string) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", "echo Welcome; "+line)
		cmd.Env = []string{"HOME=" + home, "PATH=/usr/bin:/bin"}
		cmd.Stdin = strings.NewReader(stdin)
		stdout, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(stdout), "Welcome\n") {
			t.Fatalf("%q, %v", stdout, err)
		}
		return answer(string(stdout))
	}
	uname, err := exec.Command("uname", "-sm").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ask(platformQuestion(settings)), strings.TrimSpace(string(uname)); got != want {
		t.Errorf("without gitlab-runner: %q, want %q", got, want)
	}
	const binary = "#!/bin/sh\n"
	got := ask(copyCommand(settings), binary)
	if sum, _, _ := strings.Cut(got, " "); sum != fmt.Sprintf("%x", sha256.Sum256([]byte(binary))) {
		t.Errorf("the checksum is %q", got)
	}
	if got := ask(platformQuestion(settings)); got != "" {
		t.Errorf("with gitlab-runner: %q", got)
	}
}
