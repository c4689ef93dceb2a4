package adminlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// No log contains a secret, in any form.
func TestSecretsAreMasked(t *testing.T) {
	secrets := []string{
		"glcbt-job-token", "multi\nline \"key\"", "glcbt-job", "reg-password", "git-password",
		"dXNlcjpzM2NyZXQ=", "s3cret", "plain-password", "id-token", "guest-password", "other-password",
	}
	file := filepath.Join(t.TempDir(), "log")
	for _, test := range []struct {
		name string
		o    Options
	}{
		{"debug", Options{Debug: true}},
		{"the runner's log", Options{IsRunner: true}},
		{"text file", Options{File: file, Level: slog.LevelDebug}},
		{"JSON file", Options{File: file, Level: slog.LevelDebug, Format: "json"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			test.o.Stderr, test.o.Secrets = &stderr, secrets
			logger, closer, err := Open(test.o)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range secrets {
				logger.With("with", secret).WithGroup("group").Error("message "+secret,
					"text", "a "+secret+" b", "error", fmt.Errorf("wrapped: %w", errors.New(secret)),
					"list", []string{secret}, slog.Group("inner", "text", secret), "account", struct{ User, Password string }{"u", secret})
			}
			logger.Error("open", "value", "not a secret", "count", 1, "none", nil)
			if err := closer.Close(); err != nil {
				t.Error(err)
			}
			log := stderr.Bytes()
			if strings.Contains(test.name, "file") {
				if log, err = os.ReadFile(file); err != nil {
					t.Fatal(err)
				}
				os.Remove(file)
			}
			for _, secret := range append(secrets, "line \\\"key", "line \\\\\\\"key") {
				if bytes.Contains(log, []byte(secret)) {
					t.Errorf("the log shows %q:\n%s", secret, log)
				}
			}
			if n := bytes.Count(log, []byte("[MASKED]")); n < 5*len(secrets) {
				t.Errorf("%d secrets are masked in:\n%s", n, log)
			}
			if !bytes.Contains(log, []byte("not a secret")) || !bytes.Contains(log, []byte("ERROR")) {
				t.Errorf("more is masked than necessary:\n%s", log)
			}
		})
	}
}

// A log file that cannot be opened fails no job: the administrator gets a warning, and
// the log is as if there were no file.
func TestLogFileThatCannotBeOpened(t *testing.T) {
	for _, test := range []struct {
		name string
		o    Options
		want []string // on stderr
	}{
		{"a stage's stderr is the job's", Options{}, nil},
		{"cleanup's is the runner's", Options{IsRunner: true}, []string{"log_file", "/dev/null/log", "next warning"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			test.o.Stderr, test.o.File = &stderr, "/dev/null/log"
			logger, closer, err := Open(test.o)
			if err == nil {
				t.Error("no error")
			}
			if logger == nil || closer == nil {
				t.Fatal("no logger")
			}
			logger.Warn("next warning")
			if err := closer.Close(); err != nil {
				t.Error(err)
			}
			if len(test.want) == 0 && stderr.Len() > 0 {
				t.Errorf("said:\n%s", &stderr)
			}
			for _, text := range test.want {
				if !strings.Contains(stderr.String(), text) {
					t.Errorf("does not say %q:\n%s", text, &stderr)
				}
			}
		})
	}
}

// The author of a job cannot hide the job by masking its number, and the lines of a key do
// not show either.
func TestIdentityIsNotMasked(t *testing.T) {
	var stderr bytes.Buffer
	logger, closer, err := Open(Options{Debug: true, Stderr: &stderr, Secrets: []string{
		"4711", "group/project", "-----BEGIN KEY-----\nbGluZSBvZiBhIGtleQ==\nshort\n-----END KEY-----",
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	logger.With("job", "4711", "project", "group/project").Error("failed", "stage", "run", "error", "4711: bGluZSBvZiBhIGtleQ==; a short text")
	log := stderr.String()
	for _, text := range []string{"job=4711", "project=group/project", "[MASKED]: [MASKED]; a short text"} {
		if !strings.Contains(log, text) {
			t.Errorf("the log lacks %q: %s", text, log)
		}
	}
}
