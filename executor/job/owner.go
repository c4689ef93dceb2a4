package job

import (
	"crypto/sha256"
	"fmt"
	"net/url"
	"strings"
)

// An Owner decides which jobs share a cache. It has nothing from variables: an author
// can set CI_PROJECT_ID, and can even place it before GitLab's own in the payload.
type Owner struct {
	// Instance is the URL of the GitLab server, Project GitLab's number of the
	// project; empty if the payload lacks it.
	Instance, Project string
	// Path of the project, for logs.
	Path string
	// Protected says that the job's branch or tag is protected. RefUnknown says that
	// the payload does not tell (GitLab and runners before 18.3); then Protected is
	// false.
	Protected, RefUnknown bool
}

// CacheKey identifies the caches of the owner. It is a hash, and so a valid name of a
// directory.
func (o Owner) CacheKey() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %t", o.Instance, o.Project, o.Protected))
	return fmt.Sprintf("%x", sum[:16])
}

// String describes the owner for people.
func (o Owner) String() string {
	refs := "unprotected refs"
	if o.Protected {
		refs = "protected refs"
	}
	return fmt.Sprintf("%s of %s (project %s), %s", o.Path, o.Instance, o.Project, refs)
}

// owner returns the owner in the payload.
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
