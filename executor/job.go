package executor

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"gitlab-sardine-executor/oci"
)

// jobVariablePrefix is what GitLab Runner puts before the name of every job
// variable. All of them are under the control of the job's author.
const jobVariablePrefix = "CUSTOM_ENV_"

// machineEnv is the variable by which config tells the later stages the name of the
// job's machine (job_env). An author cannot set it: theirs have [jobVariablePrefix].
// It serves a stage that finds no payload, cleanup for one, which otherwise would
// have to believe the author's CI_JOB_ID, and remove the machine of that job.
const machineEnv = "SARDINE_MACHINE"

// authConfigVariable holds passwords for registries, as Docker's config.json does.
const authConfigVariable = "DOCKER_AUTH_CONFIG"

// defaultJobTimeout is GitLab's, for jobs that do not say theirs.
const defaultJobTimeout = time.Hour

// A Job is what GitLab Runner tells a stage about the job. Who the job is comes
// from the job response file, which GitLab wrote, rather than from the
// environment: an author can set CI_JOB_ID to the number of somebody else's job.
type Job struct {
	// ID is GitLab's number of the job, Server the URL of the GitLab instance:
	// together they name the job's machine.
	ID     string
	Server string
	// machine is that name as config left it, where there is no payload to tell it
	// from; empty otherwise.
	machine string
	// Project is the path of the project, for people.
	Project string
	// Owner is whose job it is, by what only GitLab can have written.
	Owner Owner
	// Image as the job names it, with variables expanded; empty if it names none.
	Image string
	// PullPolicies the job asks for in image: pull_policy.
	PullPolicies []oci.PullPolicy
	// Accounts at registries that GitLab hands out with the job.
	Accounts []oci.Account
	// Services says whether the job has services:, of which the runner starts
	// none for a custom executor.
	Services bool
	// Timeout of the job.
	Timeout time.Duration

	variables map[string]string
	secrets   []string // of the payload
}

// An Owner is whose a job is, as far as that decides which other jobs it may meet in
// a cache. None of it comes from a variable: an author can set CI_PROJECT_ID, and
// can even get it to stand before GitLab's own in the payload.
type Owner struct {
	// Instance is the URL of the GitLab server, Project GitLab's number of the
	// project. One of them is empty if GitLab did not say it.
	Instance, Project string
	// Path of the project, for people.
	Path string
	// Protected says that the job's branch or tag is a protected one, to which only
	// some can push. RefUnknown says that GitLab or its runner did not say (before
	// 18.3); then it is not.
	Protected, RefUnknown bool
}

// errNotGitLab: the environment is not that of a stage.
var errNotGitLab = errors.New("the job's number is in neither JOB_RESPONSE_FILE nor CUSTOM_ENV_CI_JOB_ID: " +
	"this command is for GitLab Runner's custom executor to call (to run a job by hand: gitlab-sardine-executor try IMAGE)")

// JobFromEnv reads the job from the environment of a stage, given as os.Environ
// gives it.
func JobFromEnv(environ []string) (Job, error) {
	job := Job{Timeout: defaultJobTimeout, variables: map[string]string{}}
	var responseFile, machine string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if name == "JOB_RESPONSE_FILE" {
			responseFile = value
		}
		if name == machineEnv && machineName.MatchString(value) {
			machine = value
		}
		if variable, ok := strings.CutPrefix(name, jobVariablePrefix); ok {
			job.variables[variable] = value
		}
	}
	job.ID = job.variables["CI_JOB_ID"]
	job.Server = job.variables["CI_SERVER_URL"]
	job.Project = job.variables["CI_PROJECT_PATH"]
	job.Image = job.variables["CI_JOB_IMAGE"]
	services := strings.TrimSpace(job.variables["CI_JOB_SERVICES"])
	job.Services = services != "" && services != "[]" && services != "null"

	known := false
	if responseFile != "" {
		var err error
		if known, err = job.readResponse(responseFile); err != nil {
			return Job{}, err
		}
	}
	if !known && machine != "" {
		job.machine, job.ID = machine, machine[strings.LastIndexByte(machine, '-')+1:]
	}
	if job.ID == "" {
		return Job{}, errNotGitLab
	}
	if n, err := strconv.ParseUint(job.ID, 10, 64); err != nil || n == 0 {
		return Job{}, fmt.Errorf("the job's number is %q: want a positive integer", job.ID)
	}
	return job, nil
}

// ForgetJobVariables takes the variables of jobs out of the environment of this
// process. What it starts needs none of them and may outlive the job, as passt
// does a stage; and they can be so large that there is no room for arguments.
func ForgetJobVariables() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, jobVariablePrefix) {
			os.Unsetenv(name)
		}
	}
}

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

// owner is whose job it is.
func (r *response) owner() Owner {
	protected := r.GitInfo.Protected
	owner := Owner{
		Path:       r.JobInfo.ProjectFullPath,
		Protected:  protected != nil && *protected,
		RefUnknown: protected == nil,
	}
	if id := r.JobInfo.ProjectID.String(); id != "0" {
		owner.Project = id
	}
	if repo, err := url.Parse(r.GitInfo.RepoURL); err == nil && repo.Host != "" {
		// https://gitlab-ci-token:TOKEN@HOST[/PREFIX]/GROUP/PROJECT.git
		instance := url.URL{Scheme: repo.Scheme, Host: strings.ToLower(repo.Host)}
		if prefix, ok := strings.CutSuffix(repo.Path, "/"+owner.Path+".git"); ok && owner.Path != "" {
			instance.Path = prefix
		}
		owner.Instance = instance.String()
	}
	return owner
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

// VMName is the name of the job's machine: a function of the job alone, so that
// cleanup finds the machine whatever became of the stages before.
func (j Job) VMName() string {
	if j.machine != "" {
		return j.machine
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(j.Server, "/")))
	return fmt.Sprintf("sardine-%x-%s", sum[:4], j.ID)
}

// Secrets are what no log may show: tokens, passwords, masked variables.
func (j Job) Secrets() []string {
	secrets := slices.Clone(j.secrets)
	for _, account := range j.Accounts {
		secrets = append(secrets, account.Password)
	}
	return append(secrets, oci.SecretsIn(j.Variable(authConfigVariable))...)
}

// Variable is the value of a job variable: the author's word.
func (j Job) Variable(name string) string { return j.variables[name] }
