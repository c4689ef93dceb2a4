package policy

import (
	"strings"
	"testing"

	"gitlab-sardine-executor/executor/config"
	"gitlab-sardine-executor/executor/failure"
	"gitlab-sardine-executor/executor/job"
)

// TestLocalImage: a disk or virtual machine of the host is for the administrator, and for jobs only if it is
// listed or is the administrator's substitute.
func TestLocalImage(t *testing.T) {
	const disk = "file:/srv/images/a.qcow2"
	for name, c := range map[string]struct {
		settings string
		image    string
		local    bool
		want     string // the image, or part of the error
	}{
		"every image":    {"", disk, false, "no pattern in allowed_images that starts with file: allows it"},
		"**":             {"[defaults]\nallowed_images = ['**']", disk, false, "no pattern in allowed_images that starts with file: allows it"},
		"listed":         {"[defaults]\nallowed_images = ['file:/srv/images/*']", disk, false, disk},
		"next to listed": {"[defaults]\nallowed_images = ['file:/srv/images/*']", "file:/srv/images/../a", false, "is not allowed here"},
		"machine":        {"[defaults]\nallowed_images = ['**', 'file:/**', 'oci:/**']", "libvirt:ci", false, "no pattern in allowed_images that starts with libvirt: allows it"},
		"its name":       {"[defaults]\nallowed_images = ['libvirt:ci-*']", "libvirt:ci-1 [x]*", false, "libvirt:ci-1 [x]*"},
		"another name":   {"[defaults]\nallowed_images = ['libvirt:ci-*']", "libvirt:c", false, "is not allowed here"},
		"try":            {"", disk, true, disk},
		"substitute":     {"[[image]]\nmatch = 'debian:*'\nimage = '" + disk + "'", "debian:12", false, disk},
		"default":        {"[defaults]\nimage = '" + disk + "'", "", false, disk},
	} {
		t.Run(name, func(t *testing.T) {
			settings, err := config.Parse([]byte(c.settings))
			if err != nil {
				t.Fatal(err)
			}
			ref, _, err := Policy{Settings: settings, Job: job.Job{Image: c.image}, Local: c.local}.Image()
			if err != nil {
				if !strings.Contains(err.Error(), c.want) || failure.Classify(err) != failure.Build {
					t.Errorf("got %v, want %q", err, c.want)
				}
			} else if ref.String() != c.want {
				t.Errorf("got %s, want %q", ref, c.want)
			}
		})
	}
}
