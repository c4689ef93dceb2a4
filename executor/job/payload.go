package job

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/registry"
)

// response has the fields of the job payload that the driver reads.
type response struct {
	ID      json.Number `json:"id"`
	JobInfo struct {
		ProjectID       json.Number `json:"project_id"`
		ProjectFullPath string      `json:"project_full_path"`
	} `json:"job_info"`
	GitInfo struct {
		RepoURL   string `json:"repo_url"`
		Protected *bool  `json:"protected"`
	} `json:"git_info"`
	RunnerInfo struct {
		Timeout int `json:"timeout"` // seconds
	} `json:"runner_info"`
	Token     string `json:"token"`
	Variables []struct {
		Key    string `json:"key"`
		Value  string `json:"value"`
		Masked bool   `json:"masked"`
	} `json:"variables"`
	Image struct {
		PullPolicy []oci.PullPolicy `json:"pull_policy"`
	} `json:"image"`
	Credentials []struct {
		Type     string `json:"type"`
		URL      string `json:"url"`
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"credentials"`
}

// readResponse reads the payload, which wins over the environment. It reports whether
// there is one.
func (j *Job) readResponse(path string) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // runners before 13.9 write none, and cleanup may run after its removal
	}
	if err != nil {
		return false, fmt.Errorf("read the job's payload (JOB_RESPONSE_FILE): %w", err)
	}
	var r response
	if err := json.Unmarshal(text, &r); err != nil {
		return false, fmt.Errorf("read the job's payload (JOB_RESPONSE_FILE %s): %w", path, err)
	}
	j.ID = cmp.Or(r.ID.String(), j.ID)
	j.Owner = r.owner()
	// The payload also has the author's variables, and GitLab sorts a variable before
	// those that refer to it. So the first CI_SERVER_URL can be the author's; the URL
	// of the repository cannot.
	j.Server = cmp.Or(j.Owner.Instance, r.first("CI_SERVER_URL"), j.Server)
	j.Project = cmp.Or(r.JobInfo.ProjectFullPath, r.first("CI_PROJECT_PATH"), j.Project)
	if r.RunnerInfo.Timeout > 0 {
		j.Timeout = time.Duration(r.RunnerInfo.Timeout) * time.Second
	}
	j.PullPolicies = r.Image.PullPolicy
	j.secrets = append(j.secrets, r.Token)
	for _, v := range r.Variables {
		if v.Masked {
			j.secrets = append(j.secrets, v.Value)
		}
	}
	for _, c := range r.Credentials {
		j.secrets = append(j.secrets, c.Password)
		if c.Type == "registry" && c.URL != "" {
			j.Accounts = append(j.Accounts, registry.Account{Registry: registryOf(c.URL), Username: c.Username, Password: c.Password})
		}
	}
	return true, nil
}

// first returns the first variable of that name: most likely GitLab's own, which
// usually precede the author's.
func (r *response) first(name string) string {
	for _, v := range r.Variables {
		if v.Key == name {
			return v.Value
		}
	}
	return ""
}

// registryOf returns the host of a registry, which GitLab writes with or without scheme.
func registryOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		return u.Host
	}
	return strings.TrimSuffix(text, "/")
}
