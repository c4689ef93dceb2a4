package oci

// A PullPolicy says when a registry is asked; the words are GitLab's.
type PullPolicy string

const (
	PullAlways       PullPolicy = "always"         // ask which digest the name has now
	PullIfNotPresent PullPolicy = "if-not-present" // ask only for names not pulled before
	PullNever        PullPolicy = "never"          // use what the store holds
)
