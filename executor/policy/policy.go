// Package policy decides what a job gets: the settings, or what the job chooses where the
// administrator allows that. What is not allowed is a build failure.
package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
	"gitlab-sardine-executor/oci"
)

// A Policy is what the administrator allows a job.
type Policy struct {
	Settings *config.Settings
	Job      job.Job
	// Local says that the administrator started the job: it may use any image,
	// including layouts and files on this host.
	Local bool
}

// Image returns the image for the job, if the administrator's settings allow it.
func (p Policy) Image() (oci.Reference, config.Resolved, error) {
	settings := p.Settings.For(p.Job.Image)
	if settings.Image == "" {
		return oci.Reference{}, settings, failure.OfJob(errors.New("the job names no image: write image: REGISTRY/NAME:TAG in .gitlab-ci.yml " +
			"(or ask the administrator for a default: image in [defaults])"))
	}
	ref, err := oci.ParseReference(settings.Image)
	if err != nil {
		return ref, settings, err
	}
	// A substitute from the settings needs no permission.
	if settings.Image == p.Job.Image && !p.Local {
		if !p.Settings.Allowed(settings.Image) {
			return ref, settings, failure.OfJob(fmt.Errorf("image %s is not allowed here (allowed_images: %q)", settings.Image, p.Settings.Defaults.AllowedImages))
		}
		if prefix := ref.LocalPrefix(); prefix != "" && !p.Settings.AllowsLocal(settings.Image) {
			return ref, settings, failure.OfJob(fmt.Errorf("image %s is on the runner's host, and no pattern in allowed_images that starts with %s allows it", settings.Image, prefix))
		}
	}
	return ref, settings, nil
}

// PullPolicies returns the policies of the job if the administrator allows them, else
// those of the settings. As in GitLab's docker executor, the default for
// allowed_pull_policies is pull_policy.
func (p Policy) PullPolicies(settings config.Resolved) ([]oci.PullPolicy, error) {
	if len(p.Job.PullPolicies) == 0 {
		return settings.PullPolicies, nil
	}
	allowed := settings.AllowedPullPolicies
	if len(allowed) == 0 {
		allowed = settings.PullPolicies
	}
	for _, wish := range p.Job.PullPolicies {
		if !slices.Contains(allowed, wish) {
			return nil, failure.OfJob(fmt.Errorf("the job's pull policy %q is not allowed here (allowed_pull_policies: %q)", wish, allowed))
		}
	}
	return p.Job.PullPolicies, nil
}

// maxKeep is the longest time that a job may choose.
const maxKeep = 24 * time.Hour

// KeepTime returns how long to keep the machine if the job fails.
func (p Policy) KeepTime(settings config.Resolved) (time.Duration, error) {
	wish := p.Job.Variable(config.VariableKeepOnFailure)
	if wish == "" {
		return settings.KeepOnFailure, nil
	}
	if !slices.Contains(p.Settings.Defaults.AllowedJobVariables, config.VariableKeepOnFailure) {
		return 0, p.refuse(config.VariableKeepOnFailure)
	}
	keep, err := time.ParseDuration(wish)
	if err != nil || keep < 0 || keep > maxKeep {
		return 0, failure.OfJob(fmt.Errorf("the job's variable %s is %q: want a time such as 30m, at most %s", config.VariableKeepOnFailure, wish, maxKeep))
	}
	return keep, nil
}
