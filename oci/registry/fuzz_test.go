package registry

import (
	"errors"
	"testing"

	"github.com/containers/image/v5/docker/reference"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

// FuzzAuthConfig: the author of a job writes DOCKER_AUTH_CONFIG.
func FuzzAuthConfig(f *testing.F) {
	f.Add(ocitest.AuthFile("registry.example.com", "password"))
	f.Add(`{"auths":{"https://registry.example.com/v2/":{"username":"u","password":"p"}}}`)
	f.Add(`{"auths":{"registry.example.com":{"auth":"bm9jb2xvbg=="}}}`)
	f.Add(`{"auths":null,"credHelpers":{"registry.example.com":"x"}}`)
	named, err := reference.ParseNormalizedNamed("registry.example.com/vms/debian:12")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		auth, found, err := lookupAuthConfig(text, named)
		if err != nil && !errors.Is(err, oci.ErrDenied) {
			t.Errorf("%q: %v is no ErrDenied", text, err)
		}
		if (err != nil || !found) && (auth.Username != "" || auth.Password != "" || auth.IdentityToken != "") {
			t.Errorf("%q: %t, %v, and yet a password", text, found, err)
		}
	})
}
