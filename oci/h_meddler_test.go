package oci

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// A meddler stands before a registry. Meddle is asked about each request first and
// says whether it has answered it.
type meddler struct {
	registry http.Handler
	host     string

	mu     sync.Mutex
	meddle func(w http.ResponseWriter, r *http.Request) bool
	// uploads and blobs count the blobs that were begun to be written and read.
	uploads, blobs atomic.Int64
}

func newMeddler(t *testing.T) *meddler {
	t.Helper()
	m := &meddler{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.host = strings.TrimPrefix(server.URL, "http://")
	trustInsecure(t, m.host)
	return m
}

// trustInsecure names a host insecure in a registries.conf of the test's own.
func trustInsecure(t *testing.T, host string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

func (m *meddler) set(meddle func(http.ResponseWriter, *http.Request) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meddle = meddle
}

func (m *meddler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	meddle := m.meddle
	m.mu.Unlock()
	if meddle != nil && meddle(w, r) {
		return
	}
	switch {
	case r.Method == http.MethodPost:
		m.uploads.Add(1)
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
		m.blobs.Add(1)
	}
	m.registry.ServeHTTP(w, r)
}

// newQuietMeddler is for parallel tests, which cannot set environment variables.
func newQuietMeddler(t *testing.T) *meddler {
	t.Helper()
	m := &meddler{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.host = strings.TrimPrefix(server.URL, "http://")
	return m
}

// testRegistry is a real registry in this process, over plain HTTP, named as
// insecure in a registries.conf of the test's own. requests counts.
func testRegistry(t *testing.T) (host string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
	return host, requests
}
