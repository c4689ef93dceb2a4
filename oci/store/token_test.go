package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/oci/transfer"
)

// TestToken talks to a registry as GitLab runs one: passwords go to a token
// service alone, and the registry wants its tokens.
func TestToken(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	var tokens atomic.Int64
	status := atomic.Int64{}
	m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		user, password, hasPassword := r.BasicAuth()
		if r.URL.Path == "/jwt/auth" {
			if status.Load() != 0 {
				w.WriteHeader(int(status.Load()))
				return true
			}
			if user != "gitlab-ci-token" || password != "t0ken" {
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"HTTP Basic: Access denied"}]}`)
				return true
			}
			tokens.Add(1)
			json.NewEncoder(w).Encode(map[string]any{"token": "pass", "expires_in": 300})
			return true
		}
		if hasPassword {
			t.Error("the registry itself was given the password")
		}
		if r.Header.Get("Authorization") == "Bearer pass" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/jwt/auth",service="container_registry"`, m.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	ref := ocitest.MustParse(t, m.Host+"/group/project/vm:1")
	job := registry.Credentials{Accounts: []registry.Account{{Registry: m.Host, Username: "gitlab-ci-token", Password: "t0ken"}}}
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{Credentials: job}); err != nil {
		t.Fatal(err)
	}
	image, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: job})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
	if tokens.Load() == 0 {
		t.Error("no token was asked for")
	}
	authFile := registry.Credentials{AuthFile: filepath.Join(t.TempDir(), "auth.json")}
	if _, err := registry.Login(t.Context(), m.Host, "gitlab-ci-token", "t0ken", authFile); err != nil {
		t.Errorf("login: %v", err)
	}
	if _, err := source.Inspect(t.Context(), ref, source.InspectOptions{Options: source.Options{Credentials: authFile}}); err != nil {
		t.Errorf("inspect: %v", err)
	}

	stale := registry.Credentials{Accounts: []registry.Account{{Registry: m.Host, Username: "gitlab-ci-token", Password: "expired"}}}
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: stale, retries: shortRetries}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("an expired password: %v", err)
	} else if strings.Contains(err.Error(), "expired") {
		t.Errorf("the error shows the password: %v", err)
	}
	for _, test := range []struct {
		status int64
		final  bool
	}{{http.StatusForbidden, true}, {http.StatusServiceUnavailable, false}} {
		status.Store(test.status)
		_, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: job, retries: shortRetries})
		if err == nil || oci.IsPermanent(err) != test.final {
			t.Errorf("token service answers %d: %v", test.status, err)
		}
	}
}
