// Package job reads what GitLab Runner tells a stage about its job: the payload and the
// environment.
package job

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gitlab-sardine-executor/oci"
)

// jobVariablePrefix is what GitLab Runner puts before the name of every job
// variable. All of them are under the control of the job's author.
const jobVariablePrefix = "CUSTOM_ENV_"

// MachineEnv is the variable by which config tells the later stages the name of the
// job's machine (job_env). An author cannot set it: theirs have [jobVariablePrefix].
// It serves a stage that finds no payload, cleanup for one, which otherwise would
// have to believe the author's CI_JOB_ID, and remove the machine of that job.
const MachineEnv = "SARDINE_MACHINE"

// authConfigVariable holds passwords for registries, as Docker's config.json does.
const authConfigVariable = "DOCKER_AUTH_CONFIG"

// DefaultTimeout is GitLab's, for jobs that do not say theirs.
const DefaultTimeout = time.Hour

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

	// Variables of the job, without their prefix: under the author's control.
	Variables map[string]string

	secrets []string // of the payload
}

// ErrNotGitLab: the environment is not that of a stage.
var ErrNotGitLab = errors.New("the job's number is in neither JOB_RESPONSE_FILE nor CUSTOM_ENV_CI_JOB_ID: " +
	"this command is for GitLab Runner's custom executor to call (to run a job by hand: gitlab-sardine-executor try IMAGE)")

// FromEnv reads the job from the environment of a stage, given as os.Environ
// gives it.
func FromEnv(environ []string) (Job, error) {
	job := Job{Timeout: DefaultTimeout, Variables: map[string]string{}}
	var responseFile, machine string
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if name == "JOB_RESPONSE_FILE" {
			responseFile = value
		}
		if name == MachineEnv && machineName.MatchString(value) {
			machine = value
		}
		if variable, ok := strings.CutPrefix(name, jobVariablePrefix); ok {
			job.Variables[variable] = value
		}
	}
	job.ID = job.Variables["CI_JOB_ID"]
	job.Server = job.Variables["CI_SERVER_URL"]
	job.Project = job.Variables["CI_PROJECT_PATH"]
	job.Image = job.Variables["CI_JOB_IMAGE"]
	services := strings.TrimSpace(job.Variables["CI_JOB_SERVICES"])
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
		return Job{}, ErrNotGitLab
	}
	if n, err := strconv.ParseUint(job.ID, 10, 64); err != nil || n == 0 {
		return Job{}, fmt.Errorf("the job's number is %q: want a positive integer", job.ID)
	}
	return job, nil
}

// ForgetVariables takes the variables of jobs out of the environment of this
// process. What it starts needs none of them and may outlive the job, as passt
// does a stage; and they can be so large that there is no room for arguments.
func ForgetVariables() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, jobVariablePrefix) {
			os.Unsetenv(name)
		}
	}
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
func (j Job) Variable(name string) string { return j.Variables[name] }

// machineName matches what [Job.VMName] makes.
var machineName = regexp.MustCompile(`^sardine-[0-9a-f]{8}-[0-9]+$`)

// IsMachineName reports whether name is one that [Job.VMName] makes.
func IsMachineName(name string) bool { return machineName.MatchString(name) }

// AuthConfig is the job variable DOCKER_AUTH_CONFIG: passwords for registries, in the
// format of Docker's config.json.
func (j Job) AuthConfig() string { return j.Variable(authConfigVariable) }

// IsJob says whether a person who wrote text means a job, and not a registry.
func IsJob(text string) bool {
	return machineName.MatchString(text) || text != "" && strings.Trim(text, "0123456789") == ""
}
