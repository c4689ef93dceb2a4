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
)

// response is what we read of the payload that GitLab sends for a job.
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

// readResponse takes what GitLab itself says over what the environment does. It
// reports whether there was anything to read.
func (j *Job) readResponse(path string) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // runners before 13.9 write none; cleanup may come too late for it
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
	// Of the variables in the payload some are the author's, and GitLab sorts them:
	// one that another refers to comes before it. So the first CI_SERVER_URL may be
	// the author's; the address of the repository is not.
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
			j.Accounts = append(j.Accounts, oci.Account{Registry: registryOf(c.URL), Username: c.Username, Password: c.Password})
		}
	}
	return true, nil
}

// first is the value of the first variable of that name: most likely GitLab's own,
// of which the author's come behind.
func (r *response) first(name string) string {
	for _, v := range r.Variables {
		if v.Key == name {
			return v.Value
		}
	}
	return ""
}

// registryOf is the host of a registry that GitLab names with or without scheme.
func registryOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		return u.Host
	}
	return strings.TrimSuffix(text, "/")
}
