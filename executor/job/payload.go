package job

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"slices"
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
	// These are for logs alone. A payload with another form of them is no error.
	Services    json.RawMessage `json:"services"`
	Inputs      json.RawMessage `json:"inputs"`
	Secrets     json.RawMessage `json:"secrets"`
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
	j.readSensitive(r)
	for _, c := range r.Credentials {
		j.secrets = append(j.secrets, c.Password)
		if c.Type == "registry" && c.URL != "" {
			j.Accounts = append(j.Accounts, registry.Account{Registry: registryOf(c.URL), Username: c.Username, Password: c.Password})
		}
	}
	return true, nil
}

// A service is one of a job's services:.
type service struct {
	Name      string `json:"name"`
	Variables []struct {
		Value string `json:"value"`
	} `json:"variables"`
}

// An input is one of a job's inputs:. GitLab has two forms of it.
type input struct {
	Value     json.RawMessage `json:"value"`
	Sensitive bool            `json:"sensitive"`
}

// readSensitive finds further values that no log may show, and the names of the services.
func (j *Job) readSensitive(r response) {
	var services []service
	if json.Unmarshal(r.Services, &services) == nil {
		for _, s := range services {
			for _, v := range s.Variables {
				j.secrets = append(j.secrets, v.Value)
			}
		}
	}
	var inputs []input
	if json.Unmarshal(r.Inputs, &inputs) == nil {
		for _, i := range inputs {
			j.secrets = append(j.secrets, i.secrets()...)
		}
	}
	// The payload only says where the runner finds a secret. Its value is a variable.
	var secrets map[string]json.RawMessage
	if json.Unmarshal(r.Secrets, &secrets) == nil {
		j.secretNames = slices.Sorted(maps.Keys(secrets))
	}
}

// secrets returns the content of a sensitive input; nothing of others.
func (i input) secrets() []string {
	content, sensitive := i.Value, i.Sensitive
	var typed struct {
		Content   json.RawMessage `json:"content"`
		Sensitive bool            `json:"sensitive"`
	}
	if json.Unmarshal(i.Value, &typed) == nil && typed.Content != nil {
		content, sensitive = typed.Content, sensitive || typed.Sensitive
	}
	if !sensitive {
		return nil
	}
	return stringsIn(content)
}

// stringsIn returns the strings and numbers in a JSON value.
func stringsIn(text json.RawMessage) []string {
	var list []json.RawMessage
	if json.Unmarshal(text, &list) == nil {
		var all []string
		for _, item := range list {
			all = append(all, stringsIn(item)...)
		}
		return all
	}
	var s string
	if json.Unmarshal(text, &s) == nil {
		return []string{s}
	}
	return []string{string(text)}
}

// servicesIn returns the names in the value of CI_JOB_SERVICES. If the value has another
// form, it is the name.
func servicesIn(text string) []string {
	if text = strings.TrimSpace(text); text == "" || text == "null" {
		return nil
	}
	var services []service
	if json.Unmarshal([]byte(text), &services) != nil {
		return []string{text}
	}
	var names []string
	for _, s := range services {
		names = append(names, s.Name)
	}
	return names
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
