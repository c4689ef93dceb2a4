package config

import (
	"strings"
	"testing"
)

// What config.example.toml and docs/limits.md say about globs.
func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		pattern      string
		matches, not []string
	}{
		{"**", []string{"debian:12", "registry.example.com/a/b/c:1", "oci:/srv/images/x:1"}, nil},
		{"*", []string{"debian:12"}, []string{"registry.example.com/a:1"}},
		{"registry.example.com/**", []string{"registry.example.com/a:1", "registry.example.com/a/b/c:1"}, []string{"registry.example.com:5000/a:1", "registry.example.org/a:1"}},
		{"registry.example.com/vms/*", []string{"registry.example.com/vms/a:1"}, []string{"registry.example.com/vms/a/b:1"}},
		{"registry.example.com/**/*:stable", []string{"registry.example.com/a:stable", "registry.example.com/a/b:stable"}, []string{"registry.example.com/a:1"}},
		{"registry.example.com/**/vm:1", []string{"registry.example.com/vm:1", "registry.example.com/a/b/vm:1"}, []string{"registry.example.com/a/xvm:1"}},
		{"registry.example.com/{vms,team/**}/a:1", []string{"registry.example.com/vms/a:1", "registry.example.com/team/x/y/a:1"}, []string{"registry.example.com/other/a:1"}},
		{"debian:1?", []string{"debian:12"}, []string{"debian:1", "debian:123"}},
		{"debian:[0-9]*", []string{"debian:12"}, []string{"debian:sid"}},
		{"oci:/**", []string{"oci:/srv/images/x:1", "oci:/x:1"}, []string{"debian:12"}},
		{"oci:/srv/*", []string{"oci:/srv/x:1"}, []string{"oci:/srv/images/x:1"}},
	} {
		if err := checkGlob(c.pattern); err != nil {
			t.Errorf("%s: %v", c.pattern, err)
		}
		for _, image := range c.matches {
			if !matchImage(c.pattern, image) {
				t.Errorf("%s does not match %s", c.pattern, image)
			}
		}
		for _, image := range c.not {
			if matchImage(c.pattern, image) {
				t.Errorf("%s matches %s", c.pattern, image)
			}
		}
	}
}

// A ** that crosses no slash is refused, with the glob that was probably meant.
func TestCheckGlob(t *testing.T) {
	for pattern, want := range map[string]string{
		"oci:**":                         `write "oci:/**",`,
		"registry.example.com/vms**":     `write "registry.example.com/vms/**",`,
		"registry.example.com/**:stable": `write "registry.example.com/**/*:stable",`,
		"**:stable":                      `write "**/*:stable",`,
		"registry.example.com/a**b/c":    `write "registry.example.com/a/**/*b/c",`,
		"registry.example.com/***":       `write "registry.example.com/**",`,
		"registry.example.com/[a":        "not a glob",
	} {
		for _, settings := range []string{
			"[defaults]\nallowed_images = ['" + pattern + "']",
			"[[image]]\nmatch = '" + pattern + "'",
		} {
			_, err := Parse([]byte(settings))
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), pattern) {
				t.Errorf("%s\n%v, want %s", settings, err, want)
			}
		}
	}
}

// TestLocalImages: a job reaches nothing on the host that the administrator did not list with
// its prefix, and cannot leave what is listed.
func TestLocalImages(t *testing.T) {
	for _, c := range []struct {
		allowed string
		image   string
		want    bool
	}{
		{"", "file:/srv/images/a.qcow2", false},
		{"'**'", "file:/srv/images/a.qcow2", false},
		{"'*'", "file:/srv/images/a.qcow2", false},
		{"'**/a.qcow2'", "file:/srv/images/a.qcow2", false},
		{"'*:/srv/**'", "file:/srv/images/a.qcow2", false},
		{"'{file:,oci:}/srv/**'", "file:/srv/images/a.qcow2", false},
		{"'/srv/**', 'oci:/srv/**', 'oci:/**'", "file:/srv/images/a.qcow2", false},
		{"'file:/**'", "oci:/srv/images/a", false},
		{"'file:/srv/images/*.qcow2'", "file:/srv/images/a.qcow2", true},
		{"'file:/srv/images/*.qcow2'", "file:///srv/images/a.qcow2", true},
		{"'file:/srv/images/*.qcow2'", "file:/srv/images/./a.qcow2", true},
		{"'file:/srv/images/*.qcow2'", "file:/srv/images/b/a.qcow2", false},
		{"'file:/srv/images/*.qcow2'", "file:/srv/images/../a.qcow2", false},
		{"'file:/srv/images/**'", "file:/srv/images/../../etc/shadow", false},
		{"'file:/srv/images/**'", "file:/srv/images/b/../../other/a", false},
		{"'file:/srv/images/**'", "file:srv/images/a", false},
		{"'file:/srv/images/**'", "file:", false},
		{"'file:/srv/images/**'", "file:/srv/images/", false},
		{"'file:/srv/images/**'", "docker://file:/srv/images/a", false},
		{"'file:/srv/images/**'", "FILE:/srv/images/a", false},
		{"'file:/srv/images/**'", "debian:12", false},
	} {
		s := parse(t, "[defaults]\nallowed_images = ["+c.allowed+"]")
		if got := s.AllowsLocal(c.image); got != c.want {
			t.Errorf("allowed_images = [%s]: %s is allowed: %t, want %t", c.allowed, c.image, got, c.want)
		}
	}
}
