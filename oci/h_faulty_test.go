package oci

import (
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

// A faultyRegistry is a real registry behind a door that a test keeps.
type faultyRegistry struct {
	host string
	// fault may answer in place of the registry, and says whether it did; nil means
	// that all is well.
	fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]

	mu     sync.Mutex
	gets   map[string]int // of blobs, by digest
	ranges int            // requests for a part of a blob
	sent   atomic.Int64   // bytes of blobs
}

func newFaultyRegistry(t *testing.T) *faultyRegistry {
	t.Helper()
	f := &faultyRegistry{gets: map[string]int{}}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			f.count(r)
			w = &countingWriter{w, &f.sent}
		}
		if fault := f.fault.Load(); fault == nil || !(*fault)(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	f.host = strings.TrimPrefix(server.URL, "http://")
	setInsecure(t, f.host)
	return f
}

// setInsecure names a registry as one of plain HTTP, for this test.
func setInsecure(t *testing.T, host string) {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte("[[registry]]\nlocation = \""+host+"\"\ninsecure = true\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

func (f *faultyRegistry) count(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
	if r.Header.Get("Range") != "" {
		f.ranges++
	}
}

func (f *faultyRegistry) fail(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.fault.Store(&fault)
}

type countingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}
