package ocitest

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

// A Meddler stands before a registry. Meddle is asked about each request first and
// says whether it has answered it.
type Meddler struct {
	Registry http.Handler
	Host     string

	mu     sync.Mutex
	meddle func(w http.ResponseWriter, r *http.Request) bool
	// uploads and blobs count the blobs that were begun to be written and read.
	Uploads, Blobs atomic.Int64
}

func NewMeddler(t *testing.T) *Meddler {
	t.Helper()
	m := &Meddler{Registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.Host = strings.TrimPrefix(server.URL, "http://")
	TrustInsecure(t, m.Host)
	return m
}

// TrustInsecure names a host insecure in a registries.conf of the test's own.
func TrustInsecure(t *testing.T, host string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	text := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", host)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

func (m *Meddler) Set(meddle func(http.ResponseWriter, *http.Request) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meddle = meddle
}

func (m *Meddler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	meddle := m.meddle
	m.mu.Unlock()
	if meddle != nil && meddle(w, r) {
		return
	}
	switch {
	case r.Method == http.MethodPost:
		m.Uploads.Add(1)
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
		m.Blobs.Add(1)
	}
	m.Registry.ServeHTTP(w, r)
}

// NewQuietMeddler is for parallel tests, which cannot set environment variables.
func NewQuietMeddler(t *testing.T) *Meddler {
	t.Helper()
	m := &Meddler{Registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	m.Host = strings.TrimPrefix(server.URL, "http://")
	return m
}

// TestRegistry is a real registry in this process, over plain HTTP, named as
// insecure in a registries.conf of the test's own. requests counts.
func TestRegistry(t *testing.T) (host string, requests *atomic.Int64) {
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
