package oci

// A PullPolicy says when to ask a registry. The names are GitLab's.
type PullPolicy string

const (
	PullAlways       PullPolicy = "always"         // ask for the current digest
	PullIfNotPresent PullPolicy = "if-not-present" // ask only for names that the store does not have
	PullNever        PullPolicy = "never"          // use only the store
)
