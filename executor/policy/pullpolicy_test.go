package policy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/oci"
)

// The job's image: pull_policy is used if the administrator allows all of it. (GitLab
// Runner's own executors accepted a list if they allowed a part of it.)
func TestJobPullPolicy(t *testing.T) {
	const always, ifNotPresent, never = oci.PullAlways, oci.PullIfNotPresent, oci.PullNever
	type policies = []oci.PullPolicy
	tests := map[string]struct {
		settings string
		job      policies
		want     policies // nil: a build failure
	}{
		"no choice":                   {"", nil, policies{always}},
		"the job, same as default":    {"", policies{always}, policies{always}},
		"the job, another":            {"", policies{never}, nil},
		"the settings":                {`pull_policy = ["always", "if-not-present"]`, nil, policies{always, ifNotPresent}},
		"a part of the settings'":     {`pull_policy = ["always", "if-not-present"]`, policies{ifNotPresent}, policies{ifNotPresent}},
		"in the job's order":          {`pull_policy = ["always", "if-not-present"]`, policies{ifNotPresent, always}, policies{ifNotPresent, always}},
		"allowed":                     {`allowed_pull_policies = ["always", "never"]`, policies{never}, policies{never}},
		"allowed, no choice":          {`allowed_pull_policies = ["always", "never"]`, nil, policies{always}},
		"default, not allowed":        {`allowed_pull_policies = ["never"]`, policies{always}, nil},
		"one of two is not allowed":   {`allowed_pull_policies = ["always"]`, policies{ifNotPresent, always}, nil},
		"one of two, the other way":   {`allowed_pull_policies = ["always"]`, policies{always, ifNotPresent}, nil},
		"unknown policy":              {"", policies{"sometimes"}, nil},
		"unknown policy, all allowed": {`allowed_pull_policies = ["always", "if-not-present", "never"]`, policies{"sometimes"}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			settings, err := config.Parse([]byte("[defaults]\n" + test.settings))
			if err != nil {
				t.Fatal(err)
			}
			job := jobWithPolicies(t, test.job)
			p := Policy{Settings: settings, Job: job}
			got, err := p.PullPolicies(settings.For(job.Image))
			if test.want == nil {
				if err == nil || failure.Classify(err) != failure.Build || !strings.Contains(err.Error(), "allowed_pull_policies") {
					t.Errorf("got %v, %v; want a build failure that names allowed_pull_policies", got, err)
				}
				return
			}
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

// jobWithPolicies is a job as GitLab Runner hands it out.
func jobWithPolicies(t *testing.T, policies []oci.PullPolicy) job.Job {
	t.Helper()
	payload, err := json.Marshal(map[string]any{
		"id":    42,
		"image": map[string]any{"name": "registry.example.com/vms/debian:12", "pull_policy": policies},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "response.json")
	if err := os.WriteFile(path, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := job.FromEnv([]string{"JOB_RESPONSE_FILE=" + path, "CUSTOM_ENV_CI_JOB_IMAGE=registry.example.com/vms/debian:12"})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// The policy of a section applies to its images only.
func TestImageSectionsPullPolicy(t *testing.T) {
	settings, err := config.Parse([]byte("[[image]]\nmatch = \"registry.example.com/vms/**\"\npull_policy = \"never\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]oci.PullPolicy{"registry.example.com/vms/a:1": oci.PullNever, "registry.example.com/b:1": oci.PullAlways} {
		p := Policy{Settings: settings}
		got, err := p.PullPolicies(settings.For(image))
		if err != nil || !slices.Equal(got, []oci.PullPolicy{want}) {
			t.Errorf("%s: %v, %v; want %s", image, got, err, want)
		}
	}
}
