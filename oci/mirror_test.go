package oci

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
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
	origin, mirror := newMeddler(t), newMeddler(t)
	for fixture, m := range map[string]*meddler{"single": mirror, "chain": origin} {
		trustInsecure(t, m.host)
		if _, err := Push(t.Context(), fixtureRef(t, fixture, "latest"), mustParse(t, m.host+"/vms/"+fixture+":1"), TransferOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mirror.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); ok || r.Header.Get("Authorization") != "" {
			t.Error("the mirror was given a password")
		}
		return false
	})
	writeRegistriesConf(t, origin.host, mirror.host, "")
	creds := Credentials{Accounts: []Account{{Registry: "registry.example.com", Username: "job", Password: "token"}}}

	store := newStore(t)
	for fixture, want := range map[string]*meddler{"single": mirror, "chain": origin} {
		originBefore, mirrorBefore := origin.blobs.Load(), mirror.blobs.Load()
		ref := mustParse(t, "registry.example.com/vms/"+fixture+":1")
		image, err := store.Pull(t.Context(), ref, PullOptions{Credentials: creds})
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if image.Reference != ref.String() {
			t.Errorf("%s is called %s", ref, image.Reference)
		}
		fromOrigin, fromMirror := origin.blobs.Load() > originBefore, mirror.blobs.Load() > mirrorBefore
		if fromOrigin != (want == origin) || fromMirror != (want == mirror) {
			t.Errorf("%s: from the origin: %t, from the mirror: %t", fixture, fromOrigin, fromMirror)
		}
	}
	if _, err := store.Pull(t.Context(), mustParse(t, "registry.example.com/vms/none:1"), PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("neither has it: %v", err)
	}
	layout := mustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
	if _, err := Fetch(t.Context(), mustParse(t, "registry.example.com/vms/single:1"), layout, TransferOptions{}); err != nil {
		t.Errorf("fetch: %v", err)
	}
}

// TestBlocked: a registry that the administrator has blocked is not asked.
func TestBlocked(t *testing.T) {
	m := newMeddler(t)
	writeRegistriesConf(t, m.host, m.host, "blocked = true")
	m.set(func(http.ResponseWriter, *http.Request) bool {
		t.Error("it was asked")
		return false
	})
	ref := mustParse(t, "registry.example.com/vms/x:1")
	if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{patience: briefly}); !errors.Is(err, ErrDenied) {
		t.Errorf("pull: %v", err)
	}
	if _, err := Push(t.Context(), fixtureRef(t, "single", "latest"), ref, TransferOptions{}); !errors.Is(err, ErrDenied) {
		t.Errorf("push: %v", err)
	}
}
