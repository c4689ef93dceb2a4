package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/registry/distribution"
	"gitlab-sardine-executor/oci/transfer"
)

// An askedServer is a server beside a registry, and remembers what it was asked.
type askedServer struct {
	url, host string

	mu       sync.Mutex
	requests []*http.Request
}

func newAskedServer(t *testing.T, handler http.HandlerFunc) *askedServer {
	t.Helper()
	s := &askedServer{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	s.url, s.host = server.URL, strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *askedServer) asked() (n int, secret bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		secret = secret || r.Header.Get("Authorization") != ""
	}
	return len(s.requests), secret
}

// pushSingle puts an image into a registry.
func pushSingle(t *testing.T, m *ocitest.FaultyRegistry) oci.Reference {
	t.Helper()
	ref := ocitest.MustParse(t, m.Host+"/group/vm:1")
	if _, err := transfer.Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestPullSecretStaysOnItsPort pulls from a registry that redirects its blobs to
// another port of its host. Package distribution tests every other way.
func TestPullSecretStaysOnItsPort(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := pushSingle(t, m)
	storage := newAskedServer(t, m.Registry.ServeHTTP)
	ocitest.TrustInsecure(t, m.Host, storage.host)
	m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		if user, _, _ := r.BasicAuth(); user != "alice" {
			w.Header().Set("WWW-Authenticate", "Basic realm=x")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, storage.url+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	creds := registry.Credentials{Accounts: []registry.Account{{Registry: m.Host, Username: "alice", Password: "pa55word"}}}
	image, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: creds, retries: fastRetries})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
	if n, secret := storage.asked(); n == 0 || secret {
		t.Errorf("the storage was asked %d times, given a secret: %t", n, secret)
	}
}

// TestPullRefusesPlainHTTP: a registry names a place that speaks plain HTTP, and
// that registries.conf does not know.
func TestPullRefusesPlainHTTP(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"/v2/", "/manifests/", "/blobs/", "realm"} {
		t.Run(what, func(t *testing.T) {
			m := ocitest.NewFaultyRegistry(t)
			ref := pushSingle(t, m)
			victim := newAskedServer(t, func(w http.ResponseWriter, r *http.Request) {
				if what == "realm" {
					_, _ = io.WriteString(w, `{"token":"t0p-secret"}`)
					return
				}
				http.Error(w, "t0p-secret", http.StatusForbidden)
			})
			m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.Header.Get("Authorization"), "t0p-secret") {
					t.Error("the registry was given what the other place answered")
				}
				switch {
				case what == "realm":
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", victim.url+"/path"))
					w.WriteHeader(http.StatusUnauthorized)
				case strings.HasSuffix(r.URL.Path, what), what != "/v2/" && strings.Contains(r.URL.Path, what):
					http.Redirect(w, r, victim.url+"/path", http.StatusFound)
				default:
					return false
				}
				return true
			})
			_, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: shortRetries})
			if !errors.Is(err, oci.ErrInvalid) {
				t.Errorf("%v", err)
			}
			if err != nil && (strings.Contains(err.Error(), "t0p-secret") || strings.Contains(err.Error(), "/path")) {
				t.Errorf("too much is said: %v", err)
			}
			if n, _ := victim.asked(); n > 0 {
				t.Errorf("the other place was asked %d times", n)
			}
		})
	}
}

// TestRetryAfterWithoutEnd: a registry that wants to be left alone for long is
// given up at once.
func TestRetryAfterWithoutEnd(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"3600", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		for _, what := range []string{"/manifests/", "/blobs/"} {
			t.Run(what+after, func(t *testing.T) {
				m := ocitest.NewFaultyRegistry(t)
				ref := pushSingle(t, m)
				m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, what) {
						return false
					}
					w.Header().Set("Retry-After", after)
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				})
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				_, err := newStore(t).Pull(ctx, ref, PullOptions{})
				if ctx.Err() != nil || err == nil || oci.IsPermanent(err) || !strings.Contains(err.Error(), "Retry-After") {
					t.Errorf("%v", err)
				}
			})
		}
	}
}

// TestOldPassword: the text says who was refused, and where that password is.
func TestOldPassword(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := pushSingle(t, m)
	m.Fail(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	file := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(file, []byte(ocitest.AuthFile(m.Host, "0ld")), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		creds registry.Credentials
		want  []string
	}{
		"auth file":          {registry.Credentials{AuthFile: file}, []string{"asked as u,", file}},
		"DOCKER_AUTH_CONFIG": {registry.Credentials{AuthConfig: ocitest.AuthFile(m.Host, "0ld")}, []string{"asked as u,", "DOCKER_AUTH_CONFIG"}},
		"job":                {registry.Credentials{Accounts: []registry.Account{{Registry: m.Host, Username: "gitlab-ci-token", Password: "0ld"}}}, []string{"gitlab-ci-token", "job"}},
		"none":               {registry.Credentials{}, []string{"without a password"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newStore(t).Pull(t.Context(), ref, PullOptions{Credentials: test.creds, retries: shortRetries})
			if !errors.Is(err, oci.ErrDenied) {
				t.Fatal(err)
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("no word of %s: %v", word, err)
				}
			}
			if strings.Contains(err.Error(), "0ld") {
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

// TestManifestType: a manifest whose content leaves no doubt is taken for what it
// is, as podman does.
func TestManifestType(t *testing.T) {
	t.Parallel()
	for served, ok := range map[string]bool{
		"text/plain": true, "text/plain; charset=utf-8": true, "application/octet-stream": true, "application/json": true, "": true, "text/html": true,
	} {
		m := ocitest.NewFaultyRegistry(t)
		ref := pushSingle(t, m)
		m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header()["Content-Type"] = []string{served}
				m.Registry.ServeHTTP(fixedType{w, served}, r)
				return true
			}
			return false
		})
		image, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: fastRetries})
		if (err == nil) != ok {
			t.Errorf("%q: %v", served, err)
		}
		if err == nil {
			_ = image.Close()
		}
	}
	for _, content := range []string{"<html>Log in</html>", ""} {
		m := ocitest.NewFaultyRegistry(t)
		m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", "text/html")
				_, _ = io.WriteString(w, content)
				return true
			}
			return false
		})
		_, err := newStore(t).Pull(t.Context(), ocitest.MustParse(t, m.Host+"/group/vm:1"), PullOptions{retries: shortRetries})
		if !errors.Is(err, oci.ErrFormat) || !strings.Contains(err.Error(), m.Host) || !strings.Contains(err.Error(), "text/html") {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// fixedType keeps a Content-Type.
type fixedType struct {
	http.ResponseWriter
	mediaType string
}

func (f fixedType) WriteHeader(status int) {
	f.Header()["Content-Type"] = []string{f.mediaType}
	f.ResponseWriter.WriteHeader(status)
}

// TestPullStalls: a blob that comes byte by byte, or not at all, ends a pull as a
// failure of the system that says so. It is not tried again.
func TestPullStalls(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(w http.ResponseWriter, r *http.Request){
		"nothing": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"byte by byte": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte{0}); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := ocitest.NewFaultyRegistry(t)
			ref := pushRaw(t, f.Host, ocitest.Noise(1<<20), 0)
			f.Fail(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				fault(w, r)
				return true
			})
			// The connection is given up first, and the pull when that did not help.
			_, err := newStore(t).Pull(t.Context(), ref, PullOptions{StallTimeout: 400 * time.Millisecond, retries: fastRetries})
			if err == nil || oci.IsPermanent(err) || !strings.Contains(err.Error(), f.Host+" sent ") || !strings.Contains(err.Error(), "in 400ms (pull_stall_timeout): gave up") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestRetryAfterInAll adds up what a registry asks for.
func TestRetryAfterInAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began, tries := time.Now(), 0
		asks := func() (struct{}, error) {
			tries++
			return struct{}{}, &distribution.StatusError{Status: http.StatusTooManyRequests, RetryAfter: 25 * time.Second}
		}
		p := registry.DefaultRetries(0)
		_, err := registry.Retry(t.Context(), p, asks)
		if waited := time.Since(began); waited != 50*time.Second || tries != 3 || !strings.Contains(err.Error(), "the limit for one pull is 1m0s in total") {
			t.Errorf("%d tries in %v: %v", tries, waited, err)
		}
		if _, err := registry.Retry(t.Context(), p, asks); time.Since(began) != 50*time.Second || err == nil {
			t.Errorf("the next request waits as well: %v, %v", time.Since(began), err)
		}
	})
}
