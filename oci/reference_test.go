package oci

import (
	"errors"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	sum := "sha256:" + strings.Repeat("a", 64)
	tests := map[string]string{
		"debian":                               "docker.io/library/debian:latest",
		"debian:12":                            "docker.io/library/debian:12",
		"vms/debian":                           "docker.io/vms/debian:latest",
		"docker.io/vms/debian:12":              "docker.io/vms/debian:12",
		"registry.example.com/vms/debian":      "registry.example.com/vms/debian:latest",
		"localhost/debian":                     "localhost/debian:latest",
		"127.0.0.1:5000/a/b/c:1":               "127.0.0.1:5000/a/b/c:1",
		"docker://r.example/x:1":               "r.example/x:1",
		"r.example/x@" + sum:                   "r.example/x@" + sum,
		"r.example/x:1@" + sum:                 "r.example/x@" + sum,
		"oci:/srv/images/debian":               "oci:/srv/images/debian",
		"oci:/srv/images/debian:12":            "oci:/srv/images/debian:12",
		"oci:/srv/a:b/debian":                  "oci:/srv/a:b/debian",
		"oci:/srv/images/../images/debian/:12": "oci:/srv/images/debian:12",
		"libvirt:ci base [1]*":                 "libvirt:ci base [1]*",
		"libvirt:a:b@c":                        "libvirt:a:b@c",
		"libvirt:büro":                         "libvirt:büro",
		"libvirt:5000/vms/debian":              "libvirt:5000/vms/debian:latest",
		"oci:/srv/debian@" + sum:               "oci:/srv/debian@" + sum,
	}
	for text, want := range tests {
		ref, err := ParseReference(text)
		if err != nil || ref.String() != want {
			t.Errorf("%q: got %q, %v; want %q", text, ref, err, want)
			continue
		}
		if again, err := ParseReference(ref.String()); err != nil || again.String() != want {
			t.Errorf("%q read again: %q, %v", want, again, err)
		}
	}
	for _, text := range []string{
		"", " ", "Debian", "r.example/X:1", "r.example/x:", "r.example/x@sha256:12", "http://r.example/x",
		"r.example/../x", "r.example/x:1\n", "-x", "libvirt:", "libvirt:a\nb", "libvirt:a\x00", "libvirt:\u202e", "libvirt:\xff", "libvirt:" + strings.Repeat("a", 256), "libvirt:/x", "libvirt:../x", "oci:", "oci::tag", "oci:/srv/x:", "oci:/srv/x@sha256:12", "oci:/srv/\x00",
	} {
		if ref, err := ParseReference(text); !errors.Is(err, ErrReference) {
			t.Errorf("%q: got %q, %v; want ErrReference", text, ref, err)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("debian:12")
	f.Add("oci:/srv/x:1")
	f.Add("libvirt:x")
	f.Add("r.example/x@sha256:aa")
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := ParseReference(text)
		if err != nil {
			return
		}
		if again, err := ParseReference(ref.String()); err != nil || again.String() != ref.String() {
			t.Errorf("%q became %q, then %q, %v", text, ref, again, err)
		}
	})
}
