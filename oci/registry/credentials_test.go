package registry

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/image/v5/docker/reference"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
)

func TestLoginRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		registry, user, password string
		want                     error
	}{
		"no registry":     {"", "u", "p", oci.ErrReference},
		"a word":          {"registry", "u", "p", oci.ErrReference},
		"an image":        {"registry.example.com/vms/debian:12", "u", "p", oci.ErrReference},
		"a digest":        {"registry.example.com/vms@sha256:" + strings.Repeat("0", 64), "u", "p", oci.ErrReference},
		"no user":         {"registry.example.com", "", "p", oci.ErrDenied},
		"user with colon": {"registry.example.com", "u:v", "p", oci.ErrDenied},
		"no password":     {"registry.example.com", "u", "", oci.ErrDenied},
	} {
		t.Run(name, func(t *testing.T) {
			creds := Credentials{AuthFile: filepath.Join(t.TempDir(), "auth.json")}
			if _, err := Login(t.Context(), test.registry, test.user, test.password, creds); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if _, err := os.Stat(creds.AuthFile); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the auth file: %v", err)
			}
		})
	}
}

// TestCredentialsOrder: the first place that knows the registry wins.
func TestCredentialsOrder(t *testing.T) {
	const host = "registry.example.com"
	admin := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(admin, []byte(ocitest.AuthFile(host, "admin's")), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "none.json")
	accounts := []Account{{Registry: "other.example.com", Username: "u", Password: "other's"}, {Registry: host, Username: "u", Password: "job's"}}
	tests := map[string]struct {
		creds Credentials
		want  string
	}{
		"all three":            {Credentials{AuthConfig: ocitest.AuthFile(host, "variable's"), AuthFile: admin, Accounts: accounts}, "variable's"},
		"no variable":          {Credentials{AuthFile: admin, Accounts: accounts}, "admin's"},
		"another's variable":   {Credentials{AuthConfig: ocitest.AuthFile("other.example.com", "x"), AuthFile: admin, Accounts: accounts}, "admin's"},
		"the job's alone":      {Credentials{AuthFile: none, Accounts: accounts}, "job's"},
		"nobody":               {Credentials{AuthFile: none}, ""},
		"longest key":          {Credentials{AuthConfig: `{"auths":{"` + host + `":{"username":"u","password":"short"},"` + host + `/vms":{"username":"u","password":"long"}}}`}, "long"},
		"not a part of a name": {Credentials{AuthConfig: ocitest.AuthFile(host+"/vm", "x"), AuthFile: none}, ""},
		"a URL":                {Credentials{AuthConfig: ocitest.AuthFile("https://"+host+"/v1/", "variable's")}, "variable's"},
		"a job's helper":       {Credentials{AuthConfig: `{"credHelpers":{"` + host + `":"test"},"credsStore":"test"}`, AuthFile: none}, ""},
	}
	named, err := reference.ParseNormalizedNamed(host + "/vms/debian:12")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			found, err := test.creds.accountFor(test.creds.environment(), named, named)
			if err != nil {
				t.Fatal(err)
			}
			if got := found.auth.Password; got != test.want {
				t.Errorf("got the password %q, want %q", got, test.want)
			}
		})
	}
}
