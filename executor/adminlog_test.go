package executor

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

// Whatever is logged, and in whichever form, no secret of the job or of the settings
// is in it.
func TestSecretsAreMasked(t *testing.T) {
	job := jobIn(t,
		"JOB_RESPONSE_FILE="+writeFile(t, `{"id": 1, "token": "glcbt-job-token",
			"variables": [
				{"key": "DEPLOY_KEY", "value": "multi\nline \"key\"", "masked": true},
				{"key": "PART", "value": "glcbt-job", "masked": true},
				{"key": "OPEN", "value": "not a secret", "public": true},
				{"key": "EMPTY", "value": "", "masked": true}],
			"credentials": [{"type": "registry", "url": "r.example.com", "username": "u", "password": "reg-password"},
				{"type": "git", "url": "g.example.com", "username": "u", "password": "git-password"}]}`),
		`CUSTOM_ENV_DOCKER_AUTH_CONFIG={"auths":{"r.example.com":{"auth":"dXNlcjpzM2NyZXQ="},"s.example.com":{"password":"plain-password","identitytoken":"id-token"}}}`)
	secrets := []string{
		"glcbt-job-token", "multi\nline \"key\"", "glcbt-job", "reg-password", "git-password",
		"dXNlcjpzM2NyZXQ=", "s3cret", "plain-password", "id-token", "guest-password", "other-password",
	}
	file := filepath.Join(t.TempDir(), "log")
	for _, test := range []struct {
		name, settings string
		o              AdminLogOptions
	}{
		{"debug", "", AdminLogOptions{Debug: true}},
		{"the runner's log", "", AdminLogOptions{IsRunner: true}},
		{"text file", fmt.Sprintf("log_file = %q\nlog_level = 'debug'", file), AdminLogOptions{}},
		{"JSON file", fmt.Sprintf("log_file = %q\nlog_level = 'debug'\nlog_format = 'json'", file), AdminLogOptions{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := parse(t, "[defaults]\npassword = 'guest-password'\n"+test.settings+"\n[[image]]\nmatch = 'x'\npassword = 'other-password'")
			var stderr bytes.Buffer
			test.o.Stderr, test.o.Secrets = &stderr, job.Secrets()
			logger, closer, err := OpenAdminLog(s, test.o)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range secrets {
				logger.With("with", secret).WithGroup("group").Error("message "+secret,
					"text", "a "+secret+" b", "error", fmt.Errorf("wrapped: %w", errors.New(secret)),
					"list", []string{secret}, slog.Group("inner", "text", secret), "bytes", job.Accounts)
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
				t.Errorf("more is masked than has to be:\n%s", log)
			}
		})
	}
}

// A log that cannot be written is no reason for a job to fail: whoever looks after
// the host is told, and the log is as if there were no file.
func TestLogFileThatCannotBeOpened(t *testing.T) {
	for _, test := range []struct {
		name string
		o    AdminLogOptions
		want []string // on stderr
	}{
		{"a stage's stderr is the job's", AdminLogOptions{}, nil},
		{"cleanup's is the runner's", AdminLogOptions{IsRunner: true}, []string{"log_file", "/dev/null/log", "cleanup goes on"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			test.o.Stderr = &stderr
			logger, closer, err := OpenAdminLog(parse(t, "[defaults]\nlog_file = '/dev/null/log'"), test.o)
			if err == nil {
				t.Error("no error tells the caller")
			}
			if logger == nil || closer == nil {
				t.Fatal("no logger")
			}
			logger.Warn("cleanup goes on")
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
