package job

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry"
)

const payload = `{
  "id": 4711,
  "job_info": {"project_full_path": "group/project", "name": "test"},
  "runner_info": {"timeout": 1800},
  "variables": [
    {"key": "CI_SERVER_URL", "value": "https://gitlab.example.com", "public": true},
    {"key": "CI_PROJECT_PATH", "value": "group/project"},
    {"key": "CI_SERVER_URL", "value": "https://evil.example.com"}
  ],
  "image": {"name": "debian:12", "pull_policy": ["if-not-present"]},
  "credentials": [
    {"type": "registry", "url": "registry.example.com", "username": "gitlab-ci-token", "password": "t0ken"},
    {"type": "registry", "url": "https://registry.example.org:5000/", "username": "u", "password": "p"},
    {"type": "git", "url": "https://gitlab.example.com", "username": "x", "password": "y"}
  ]
}`

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "response.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFromEnv(t *testing.T) {
	job, err := FromEnv([]string{
		"JOB_RESPONSE_FILE=" + writeFile(t, payload),
		"CUSTOM_ENV_CI_JOB_IMAGE=debian:12",
		"CUSTOM_ENV_CI_JOB_SERVICES=",
		"CUSTOM_ENV_EMPTY=",
		"CUSTOM_ENV_LINES=a=b\nc",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Job{
		ID: "4711", Server: "https://gitlab.example.com", Project: "group/project", Image: "debian:12",
		Owner:        Owner{Path: "group/project", RefUnknown: true},
		PullPolicies: []oci.PullPolicy{oci.PullIfNotPresent},
		Accounts: []registry.Account{
			{Registry: "registry.example.com", Username: "gitlab-ci-token", Password: "t0ken"},
			{Registry: "registry.example.org:5000", Username: "u", Password: "p"},
		},
		Timeout:   30 * time.Minute,
		Variables: job.Variables,
		secrets:   job.secrets,
	}
	if diff := cmp.Diff(want, job, cmp.AllowUnexported(Job{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := job.Variable("LINES"); got != "a=b\nc" {
		t.Errorf("variable with a line break: %q", got)
	}
}

// Variables of the author must not lead to another job's machine, whether they come
// before or after GitLab's own in the payload, and with or without a payload.
func TestAuthorCannotBecomeAnotherJob(t *testing.T) {
	const gitlabs = `"git_info": {"repo_url": "https://gitlab-ci-token:t@gitlab.example.com/group/project.git"}`
	honest := jobIn(t, "JOB_RESPONSE_FILE="+writeFile(t, `{"id": 4711, `+gitlabs+`}`))
	forged := []string{
		"CUSTOM_ENV_CI_JOB_ID=1", "CUSTOM_ENV_CI_SERVER_URL=https://other.example.com", "CUSTOM_ENV_JOB_RESPONSE_FILE=/dev/null",
		"CUSTOM_ENV_SARDINE_MACHINE=sardine-00000000-1",
	}
	const first = `"variables": [{"key": "CI_SERVER_URL", "value": "https://other.example.com"}, {"key": "CI_SERVER_URL", "value": "https://gitlab.example.com"}]`
	const gone = "JOB_RESPONSE_FILE=/nonexistent/response.json"
	for _, test := range []struct {
		name string
		env  []string
	}{
		{"variables alone", []string{"JOB_RESPONSE_FILE=" + writeFile(t, payload)}},
		{"the author's comes first", []string{"JOB_RESPONSE_FILE=" + writeFile(t, `{"id": 4711, `+gitlabs+`, `+first+`}`)}},
		{"the payload over what config said", []string{"JOB_RESPONSE_FILE=" + writeFile(t, payload), "SARDINE_MACHINE=sardine-00000000-2"}},
		{"no payload", []string{gone, "SARDINE_MACHINE=" + honest.VMName()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := jobIn(t, append(test.env, forged...)...)
			if got.VMName() != honest.VMName() || got.ID != honest.ID {
				t.Errorf("%s became %s, job %s", honest.VMName(), got.VMName(), got.ID)
			}
		})
	}
	if got := jobIn(t, gone, "CUSTOM_ENV_CI_JOB_ID=3", "SARDINE_MACHINE=../../etc").VMName(); !strings.HasSuffix(got, "-3") {
		t.Errorf("a path became the name %s", got)
	}
}

func jobIn(t *testing.T, environ ...string) Job {
	t.Helper()
	job, err := FromEnv(environ)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

func TestVMName(t *testing.T) {
	name := func(server, id string) string { return Job{Server: server, ID: id}.VMName() }
	first := name("https://gitlab.example.com", "12")
	if want := "sardine-"; !strings.HasPrefix(first, want) || !strings.HasSuffix(first, "-12") || len(first) != len("sardine-01234567-12") {
		t.Errorf("got %s", first)
	}
	if first != name("https://gitlab.example.com/", "12") {
		t.Error("a slash at the end of the URL makes another machine")
	}
	if first == name("https://gitlab.example.org", "12") || first == name("https://gitlab.example.com", "13") {
		t.Error("two jobs share a machine")
	}
}

func TestFromBadEnv(t *testing.T) {
	for _, test := range []struct {
		name string
		env  []string
		want string
	}{
		{"nothing", nil, "try IMAGE"},
		{"id that is a path", []string{"CUSTOM_ENV_CI_JOB_ID=../../etc"}, "want a positive integer"},
		{"id that is negative", []string{"CUSTOM_ENV_CI_JOB_ID=-1"}, "want a positive integer"},
		{"payload that is not JSON", []string{"JOB_RESPONSE_FILE=" + writeFile(t, "no")}, "JOB_RESPONSE_FILE"},
		{"payload with a path as id", []string{"JOB_RESPONSE_FILE=" + writeFile(t, `{"id": "../x"}`)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := FromEnv(test.env); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

// Without a payload the environment has the job: cleanup may run after its removal.
func TestFromEnvWithoutPayload(t *testing.T) {
	job, err := FromEnv([]string{
		"JOB_RESPONSE_FILE=/nonexistent/response.json", "CUSTOM_ENV_CI_JOB_ID=4711", "CUSTOM_ENV_CI_SERVER_URL=https://gitlab.example.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	with, err := FromEnv([]string{"JOB_RESPONSE_FILE=" + writeFile(t, payload)})
	if err != nil || job.VMName() != with.VMName() {
		t.Errorf("%s without the payload, %s with it (%v)", job.VMName(), with.VMName(), err)
	}
}

// Tokens, passwords, masked variables, sensitive inputs, the values of secrets: and the
// variables of services, of the payload and of DOCKER_AUTH_CONFIG.
func TestSecrets(t *testing.T) {
	job := jobIn(t,
		"JOB_RESPONSE_FILE="+writeFile(t, `{"id": 1, "token": "glcbt-job-token",
			"variables": [
				{"key": "DEPLOY_KEY", "value": "multi\nline \"key\"", "masked": true},
				{"key": "PART", "value": "glcbt-job", "masked": true},
				{"key": "OPEN", "value": "not a secret", "public": true},
				{"key": "EMPTY", "value": "", "masked": true}],
			"credentials": [{"type": "registry", "url": "r.example.com", "username": "u", "password": "reg-password"},
				{"type": "git", "url": "g.example.com", "username": "u", "password": "git-password"}],
			"services": [{"name": "postgres:16", "variables": [{"key": "POSTGRES_PASSWORD", "value": "db-password"}]}],
			"inputs": [
				{"key": "a", "value": {"type": "string", "content": "typed-input", "sensitive": true}},
				{"key": "b", "value": {"type": "array", "content": ["listed-input", 4711], "sensitive": true}},
				{"key": "c", "value": {"type": "string", "content": "not a secret either", "sensitive": false}},
				{"key": "d", "value": "plain-input", "sensitive": true}],
			"secrets": {"VAULT_TOKEN": {"vault": {"path": "p"}, "file": false}, "UNSET": {}}}`),
		"CUSTOM_ENV_VAULT_TOKEN=vault-value",
		`CUSTOM_ENV_DOCKER_AUTH_CONFIG={"auths":{"r.example.com":{"auth":"dXNlcjpzM2NyZXQ="},"s.example.com":{"password":"plain-password","identitytoken":"id-token"}}}`)
	want := []string{
		"", "4711", "dXNlcjpzM2NyZXQ=", "db-password", "git-password", "glcbt-job", "glcbt-job-token", "id-token", "listed-input",
		"multi\nline \"key\"", "plain-input", "plain-password", "reg-password", "s3cret", "typed-input", "vault-value",
	}
	got := job.Secrets()
	slices.Sort(got)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// The names of services come from a variable that the author can set: nothing in it is an
// error. A payload with unknown forms of what only logs need is none either.
func TestServices(t *testing.T) {
	for value, want := range map[string][]string{
		"": nil, "null": nil, "[]": nil,
		`[{"name":"postgres:16","alias":"db"},{"name":"redis:7"}]`: {"postgres:16", "redis:7"},
		"not JSON": {"not JSON"},
	} {
		job := jobIn(t, "CUSTOM_ENV_CI_JOB_ID=1", "CUSTOM_ENV_CI_JOB_SERVICES="+value)
		if !slices.Equal(job.Services, want) {
			t.Errorf("%q: got %q, want %q", value, job.Services, want)
		}
	}
	jobIn(t, "JOB_RESPONSE_FILE="+writeFile(t, `{"id": 1, "services": {"a": 1}, "inputs": "x", "secrets": [1]}`))
}
