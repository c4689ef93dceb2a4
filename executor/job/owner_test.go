package job

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ownedPayload is a payload in which the author has set every variable that they can.
const ownedPayload = `{
  "id": 1,
  "job_info": {"project_id": %s, "project_full_path": "group/project"},
  "git_info": {"repo_url": "%s", "protected": %s},
  "variables": [
    {"key": "CI_PROJECT_ID", "value": "666"}, {"key": "CI_SERVER_URL", "value": "https://evil.example.com"},
    {"key": "CI_COMMIT_REF_PROTECTED", "value": "true"}
  ]
}`

func ownerIn(t *testing.T, text string) Owner {
	t.Helper()
	path := filepath.Join(t.TempDir(), "response.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	job, err := FromEnv([]string{
		"JOB_RESPONSE_FILE=" + path, "CUSTOM_ENV_CI_PROJECT_ID=666", "CUSTOM_ENV_CI_COMMIT_REF_PROTECTED=true",
		"CUSTOM_ENV_CI_PROJECT_PATH=evil/project", "CUSTOM_ENV_CI_SERVER_URL=https://evil.example.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	return job.Owner
}

// An author cannot set the owner, and the owner holds no secret.
func TestOwner(t *testing.T) {
	const repo = "https://gitlab-ci-token:s3cret@GitLab.example.com/group/project.git"
	for _, test := range []struct {
		name, project, repo, protected string
		want                           Owner
	}{
		{"unprotected", "42", repo, "false", Owner{"https://gitlab.example.com", "42", "group/project", false, false}},
		{"protected", "42", repo, "true", Owner{"https://gitlab.example.com", "42", "group/project", true, false}},
		{"an old GitLab", "42", repo, "null", Owner{"https://gitlab.example.com", "42", "group/project", false, true}},
		{
			"a port and a prefix", "42", "http://gitlab-ci-token:s3cret@host:8080/gitlab/group/project.git", "false",
			Owner{"http://host:8080/gitlab", "42", "group/project", false, false},
		},
		{"another path", "42", "https://host/elsewhere.git", "false", Owner{"https://host", "42", "group/project", false, false}},
		{"no project", "0", repo, "true", Owner{"https://gitlab.example.com", "", "group/project", true, false}},
		{"no repository", "42", "", "true", Owner{"", "42", "group/project", true, false}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ownerIn(t, fmt.Sprintf(ownedPayload, test.project, test.repo, test.protected))
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if strings.Contains(got.String(), "s3cret") {
				t.Errorf("%q holds a secret", got)
			}
		})
	}
	if got := ownerIn(t, `{"id": 1, "variables": []}`); got != (Owner{RefUnknown: true}) {
		t.Errorf("of a payload without project: got %+v", got)
	}
}

func TestCacheKey(t *testing.T) {
	owner := Owner{Instance: "https://gitlab.example.com", Project: "42", Path: "group/project"}
	key := owner.CacheKey()
	renamed := owner
	renamed.Path = "other/name"
	if renamed.CacheKey() != key {
		t.Error("a project that was renamed has lost its cache")
	}
	for name, change := range map[string]func(*Owner){
		"instance":   func(o *Owner) { o.Instance = "https://gitlab.example.org" },
		"project":    func(o *Owner) { o.Project = "43" },
		"protection": func(o *Owner) { o.Protected = true },
		"border":     func(o *Owner) { o.Instance, o.Project = o.Instance+`" "4`, "2" },
	} {
		other := owner
		change(&other)
		if other.CacheKey() == key {
			t.Errorf("another %s, and the same cache", name)
		}
	}
}
