package job

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
)

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

// CacheKey tells the caches of different owners apart. It is one way, so that it can
// name a directory whatever the URL holds.
func (o Owner) CacheKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %t", o.Instance, o.Project, o.Protected))
	return fmt.Sprintf("%x", sum[:16])
}

// String says to people whose cache it is.
func (o Owner) String() string {
	refs := "unprotected refs"
	if o.Protected {
		refs = "protected refs"
	}
	return fmt.Sprintf("%s of %s (project %s), %s", o.Path, o.Instance, o.Project, refs)
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
