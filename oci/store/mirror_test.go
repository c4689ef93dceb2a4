package store

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transfer"
)

// writeRegistriesConf names a registry with a mirror; both speak plain HTTP.
func writeRegistriesConf(t *testing.T, location, mirror, more string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nprefix = \"registry.example.com\"\nlocation = %q\ninsecure = true\n%s\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", location, more, mirror)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

// TestMirror: registries.conf says where an image comes from; it keeps its name,
// and a job's password goes to no other host than the one that it is for.
func TestMirror(t *testing.T) {
	origin, mirror := ocitest.NewFaultyRegistry(t), ocitest.NewFaultyRegistry(t)
	for fixture, m := range map[string]*ocitest.FaultyRegistry{"single": mirror, "chain": origin} {
		ocitest.TrustInsecure(t, m.Host)
		if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, fixture, "latest"), ocitest.MustParse(t, m.Host+"/vms/"+fixture+":1"), transfer.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	mirror.Fail(func(_ http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); ok || r.Header.Get("Authorization") != "" {
			t.Error("the mirror was given a password")
		}
		return false
	})
	writeRegistriesConf(t, origin.Host, mirror.Host, "")
	creds := registry.Credentials{Accounts: []registry.Account{{Registry: "registry.example.com", Username: "job", Password: "token"}}}

	store := newStore(t)
	for fixture, want := range map[string]*ocitest.FaultyRegistry{"single": mirror, "chain": origin} {
		originBefore, mirrorBefore := origin.Blobs.Load(), mirror.Blobs.Load()
		ref := ocitest.MustParse(t, "registry.example.com/vms/"+fixture+":1")
		image, err := store.Pull(t.Context(), ref, PullOptions{Credentials: creds})
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if image.Reference != ref.String() {
			t.Errorf("%s is called %s", ref, image.Reference)
		}
		fromOrigin, fromMirror := origin.Blobs.Load() > originBefore, mirror.Blobs.Load() > mirrorBefore
		if fromOrigin != (want == origin) || fromMirror != (want == mirror) {
			t.Errorf("%s: from the origin: %t, from the mirror: %t", fixture, fromOrigin, fromMirror)
		}
	}
	if _, err := store.Pull(t.Context(), ocitest.MustParse(t, "registry.example.com/vms/none:1"), PullOptions{}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("neither has it: %v", err)
	}
	layout := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
	if _, err := transfer.Fetch(t.Context(), ocitest.MustParse(t, "registry.example.com/vms/single:1"), layout, transfer.Options{}); err != nil {
		t.Errorf("fetch: %v", err)
	}
}

// TestBlocked: a registry that the administrator has blocked is not asked.
func TestBlocked(t *testing.T) {
	m := ocitest.NewFaultyRegistry(t)
	writeRegistriesConf(t, m.Host, m.Host, "blocked = true")
	m.Fail(func(http.ResponseWriter, *http.Request) bool {
		t.Error("it was asked")
		return false
	})
	ref := ocitest.MustParse(t, "registry.example.com/vms/x:1")
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: shortRetries}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("pull: %v", err)
	}
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("push: %v", err)
	}
}
