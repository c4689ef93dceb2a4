package gitlab

import "path"

// directories of a job in its guest: what the driver's config says, else what
// the runner's config.toml does.
type directories struct {
	builds, cache string
	shared        bool
}

// project is where the project's files are. A builds directory that jobs share
// has room for each slot of the runner.
func (d directories) project(projectPath string) string {
	switch {
	case d.builds == "":
		return ""
	case d.shared:
		return path.Join(d.builds, "t3_xSrNUp", "0", projectPath)
	default:
		return path.Join(d.builds, projectPath)
	}
}
