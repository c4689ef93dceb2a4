package gitlab

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Job is what a GitLab server hands to a runner. Zero fields get plausible
// values.
type Job struct {
	ID        int64
	Name      string
	ServerURL string
	// ProjectID and ProjectPath ("group/project") name the project.
	ProjectID   int64
	ProjectPath string
	// Protected says whether the job's branch is protected; nil for a GitLab before
	// 18.3, which does not say it.
	Protected *bool
	// Concurrent is the number of the slot in which the runner runs the job.
	Concurrent int

	// Image is the job's "image:" with variables expanded; nil if it has none.
	Image *Image
	// Services are the job's "services:".
	Services []Service
	// Variables are those of the job's author. They win over predefined ones, as
	// far as GitLab lets them.
	Variables []Variable
	// FirstVariables are the author's, too, and stand before the predefined ones:
	// GitLab sorts variables so that those which others refer to come first.
	FirstVariables []Variable
	// Credentials are the registry logins that GitLab adds by itself.
	Credentials []Credentials

	// Script is the job's "script:" and AfterScript its "after_script:".
	Script, AfterScript string
	// Steps are further steps after script.
	Steps []Step
	// Scripts are the bodies of further stages, by stage; a stage without one is
	// left out, as GitLab Runner leaves out those with nothing to do.
	Scripts map[string]string

	// Timeout of the whole job.
	Timeout time.Duration
}

// A Step is one that GitLab adds to a job, such as release: its stage is called
// step_NAME.
type Step struct{ Name, Script string }

// An Image is a job's image in the API of GitLab.
type Image struct {
	Name         string          `json:"name"`
	Entrypoint   []string        `json:"entrypoint,omitempty"`
	PullPolicies []string        `json:"pull_policy,omitempty"`
	Options      json.RawMessage `json:"executor_opts,omitempty"`
}

// A Service is one of a job's services.
type Service struct {
	Name       string     `json:"name"`
	Alias      string     `json:"alias"`
	Entrypoint []string   `json:"entrypoint"`
	Command    []string   `json:"command"`
	Variables  []Variable `json:"variables"`
}

// A Variable is a CI variable.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	Masked bool   `json:"masked"`
	File   bool   `json:"file"`
	Raw    bool   `json:"raw"`
}

// Credentials is a login to a registry.
type Credentials struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

func (j Job) withDefaults() Job {
	setDefault(&j.ID, 4711)
	setDefault(&j.Name, "test")
	setDefault(&j.ServerURL, "https://gitlab.example.com")
	setDefault(&j.ProjectID, 42)
	setDefault(&j.ProjectPath, "group/project")
	setDefault(&j.Timeout, time.Hour)
	j.Scripts = maps.Clone(j.Scripts)
	if j.Scripts == nil {
		j.Scripts = map[string]string{}
	}
	if j.Script != "" {
		j.Scripts[StageBuildScript] = j.Script
	}
	if j.AfterScript != "" {
		j.Scripts[StageAfterScript] = j.AfterScript
	}
	return j
}

// variables are the CI variables of the job in the order in which the last one
// wins. In config the directories are not known yet, and empty.
func (j Job) variables(dirs directories) []Variable {
	host := j.ServerURL
	if u, err := url.Parse(j.ServerURL); err == nil {
		host = u.Hostname()
	}
	public := func(key, value string) Variable { return Variable{Key: key, Value: value, Public: true} }
	variables := slices.Concat(j.FirstVariables, []Variable{
		public("CI", "true"),
		public("GITLAB_CI", "true"),
		public("CI_SERVER", "yes"),
		public("CI_SERVER_NAME", "GitLab"),
		public("CI_SERVER_URL", j.ServerURL),
		public("CI_SERVER_HOST", host),
		public("CI_PIPELINE_ID", strconv.FormatInt(j.ID+1000, 10)),
		public("CI_JOB_ID", strconv.FormatInt(j.ID, 10)),
		public("CI_JOB_NAME", j.Name),
		public("CI_JOB_STAGE", "test"),
		public("CI_JOB_STATUS", "running"),
		public("CI_JOB_TIMEOUT", strconv.Itoa(int(j.Timeout.Seconds()))),
		{Key: "CI_JOB_TOKEN", Value: jobToken, Masked: true},
		public("CI_PROJECT_ID", strconv.FormatInt(j.ProjectID, 10)),
		public("CI_PROJECT_NAME", path.Base(j.ProjectPath)),
		public("CI_PROJECT_NAMESPACE", path.Dir(j.ProjectPath)),
		public("CI_PROJECT_PATH", j.ProjectPath),
		public("CI_PROJECT_URL", j.ServerURL+"/"+j.ProjectPath),
		public("CI_COMMIT_REF_NAME", "main"),
		public("CI_COMMIT_SHA", "1ecfd275763eff1d6b4844ea3168962458c9f27a"),
		public("CI_RUNNER_ID", "1"),
		public("CI_RUNNER_SHORT_TOKEN", "t3_xSrNUp"),
		public("CI_CONCURRENT_ID", strconv.Itoa(j.Concurrent)),
		public("CI_CONCURRENT_PROJECT_ID", strconv.Itoa(j.Concurrent)),
		public("CI_BUILDS_DIR", dirs.builds),
		public("CI_PROJECT_DIR", dirs.project(j.ProjectPath)),
		public("CI_JOB_SERVICES", j.servicesVariable()),
		public("FF_NETWORK_PER_BUILD", "false"),
		public("FF_USE_FASTZIP", "false"),
	})
	if j.Image != nil {
		variables = append(variables, public("CI_JOB_IMAGE", j.Image.Name))
	}
	return append(variables, j.Variables...)
}

// variable is the value of a variable of the author's; empty if there is none.
func (j Job) variable(key string) string {
	for _, v := range slices.Backward(j.Variables) {
		if v.Key == key {
			return v.Value
		}
	}
	return ""
}

// secrets are what the job log does not show.
func (j Job) secrets() []string {
	var secrets []string
	for _, v := range j.variables(directories{}) {
		if v.Masked && v.Value != "" {
			secrets = append(secrets, v.Value)
		}
	}
	return secrets
}

const jobToken = "64_job-token-of-this-job"

func (j Job) servicesVariable() string {
	if len(j.Services) == 0 {
		return ""
	}
	text, err := json.Marshal(j.Services)
	if err != nil {
		panic(err) // strings only
	}
	return string(text)
}

// response is the job payload of GitLab's API, POST /api/v4/jobs/request, as far
// as it has a meaning here.
func (j Job) response() ([]byte, error) {
	type object = map[string]any
	image := object{"name": ""}
	if j.Image != nil {
		text, err := json.Marshal(j.Image)
		if err != nil {
			return nil, fmt.Errorf("job's image: %w", err)
		}
		if err := json.Unmarshal(text, &image); err != nil {
			return nil, err
		}
	}
	step := func(name, script, when string, allowFailure bool) object {
		return object{
			"name": name, "script": strings.Split(script, "\n"), "timeout": int(j.Timeout.Seconds()),
			"when": when, "allow_failure": allowFailure,
		}
	}
	steps := []object{step("script", j.Scripts[StageBuildScript], "on_success", false)}
	if script := j.Scripts[StageAfterScript]; script != "" {
		steps = append(steps, step("after_script", script, "always", true))
	}
	return json.MarshalIndent(object{
		"id":              j.ID,
		"token":           jobToken,
		"allow_git_fetch": true,
		"job_info": object{
			"id": j.ID, "name": j.Name, "stage": "test",
			"project_id": j.ProjectID, "project_name": path.Base(j.ProjectPath), "project_full_path": j.ProjectPath,
			"time_in_queue_seconds": 1,
		},
		"git_info": object{
			"repo_url": fmt.Sprintf("%s/%s.git", j.ServerURL, j.ProjectPath), "ref": "main", "ref_type": "branch",
			"sha": "1ecfd275763eff1d6b4844ea3168962458c9f27a", "before_sha": strings.Repeat("0", 40),
			"refspecs": []string{"+refs/heads/main:refs/remotes/origin/main"}, "depth": 20,
			"protected": j.Protected,
		},
		"runner_info":  object{"timeout": int(j.Timeout.Seconds())},
		"variables":    j.variables(directories{}),
		"steps":        steps,
		"image":        image,
		"services":     emptyIfNil(j.Services),
		"artifacts":    nil,
		"cache":        []object{},
		"credentials":  emptyIfNil(j.Credentials),
		"dependencies": []object{},
		"features":     object{"trace_sections": true},
	}, "", "  ")
}

// emptyIfNil keeps JSON from saying null where GitLab says [].
func emptyIfNil[T any](list []T) []T {
	return slices.Concat([]T{}, list)
}
