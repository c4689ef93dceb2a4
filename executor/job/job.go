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
	"gitlab-sardine-executor/oci/registry"
)

// jobVariablePrefix is the prefix of job variables in the environment. The author of
// the job controls all of them.
const jobVariablePrefix = "CUSTOM_ENV_"

// MachineEnv is the variable in which the config stage passes the name of the job's
// machine to later stages (job_env). An author cannot set it: job variables have
// [jobVariablePrefix]. A cleanup without a payload would otherwise have to believe
// CI_JOB_ID, which is the author's, and remove the machine of that job.
const MachineEnv = "SARDINE_MACHINE"

// authConfigVariable holds passwords for registries, in the format of Docker's
// config.json.
const authConfigVariable = "DOCKER_AUTH_CONFIG"

// DefaultTimeout is GitLab's default, for payloads without a timeout.
const DefaultTimeout = time.Hour

// A Job is what GitLab Runner tells a stage about the job. Its identity comes from the
// job response file, which GitLab wrote: in the environment an author can set
// CI_JOB_ID to the number of another job.
type Job struct {
	// ID is GitLab's number of the job, Server the URL of the GitLab instance. The
	// name of the machine is made of both.
	ID     string
	Server string
	// machine is the name in [MachineEnv], if there is no payload.
	machine string
	// Project is the path of the project, for logs.
	Project string
	// Owner is the project of the job, from fields that only GitLab can write.
	Owner Owner
	// Image as the job names it, with variables expanded; empty if it names none.
	Image string
	// PullPolicies from image: pull_policy.
	PullPolicies []oci.PullPolicy
	// Accounts at registries, from the payload.
	Accounts []registry.Account
	// Services are the names of the job's services:, which the runner does not start
	// for a custom executor.
	Services []string
	// Timeout of the job.
	Timeout time.Duration

	// Variables of the job, without prefix. The author controls them.
	Variables map[string]string

	secrets     []string // of the payload
	secretNames []string // variables with the values of secrets:
}

// ErrNotGitLab says that the environment is not that of a stage.
var ErrNotGitLab = errors.New("neither JOB_RESPONSE_FILE nor CUSTOM_ENV_CI_JOB_ID has the number of the job: " +
	"GitLab Runner's custom executor calls this command (to run a job by hand: gitlab-sardine-executor try IMAGE)")

// FromEnv reads the job from the environment of a stage, in the form of os.Environ.
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
	job.Services = servicesIn(job.Variables["CI_JOB_SERVICES"])

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

// ForgetVariables removes job variables from the environment of this process. Its
// children need none of them and can outlive the stage, as passt does. Large variables
// also leave no room for their arguments.
func ForgetVariables() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, jobVariablePrefix) {
			os.Unsetenv(name)
		}
	}
}

// VMName is the name of the job's machine. It depends on the job alone, so that cleanup
// finds the machine even if no earlier stage ran.
func (j Job) VMName() string {
	if j.machine != "" {
		return j.machine
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(j.Server, "/")))
	return fmt.Sprintf("sardine-%x-%s", sum[:4], j.ID)
}

// Secrets returns what no log may show: tokens, passwords, masked variables, sensitive
// inputs, the values of secrets:, and the variables of services.
func (j Job) Secrets() []string {
	secrets := slices.Clone(j.secrets)
	for _, name := range j.secretNames {
		secrets = append(secrets, j.Variable(name))
	}
	for _, account := range j.Accounts {
		secrets = append(secrets, account.Password)
	}
	return append(secrets, registry.SecretsIn(j.Variable(authConfigVariable))...)
}

// Variable returns a job variable. The author controls its value.
func (j Job) Variable(name string) string { return j.Variables[name] }

// machineName matches what [Job.VMName] makes.
var machineName = regexp.MustCompile(`^sardine-[0-9a-f]{8}-[0-9]+$`)

// IsMachineName reports whether name is one that [Job.VMName] makes.
func IsMachineName(name string) bool { return machineName.MatchString(name) }

// AuthConfig is the job variable DOCKER_AUTH_CONFIG: passwords for registries, in the
// format of Docker's config.json.
func (j Job) AuthConfig() string { return j.Variable(authConfigVariable) }

// IsJob reports whether text is the number of a job or the name of a machine.
func IsJob(text string) bool {
	return machineName.MatchString(text) || text != "" && strings.Trim(text, "0123456789") == ""
}
