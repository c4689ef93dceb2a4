package ocitest

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

// A FaultyRegistry is a real registry behind a door that a test keeps.
type FaultyRegistry struct {
	Host string
	// fault may answer in place of the registry, and says whether it did; nil means
	// that all is well.
	Fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]

	mu     sync.Mutex
	Gets   map[string]int // of blobs, by digest
	Ranges int            // requests for a part of a blob
	Sent   atomic.Int64   // bytes of blobs
}

func NewFaultyRegistry(t *testing.T) *FaultyRegistry {
	t.Helper()
	f := &FaultyRegistry{Gets: map[string]int{}}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			f.count(r)
			w = &CountingWriter{w, &f.Sent}
		}
		if fault := f.Fault.Load(); fault == nil || !(*fault)(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	f.Host = strings.TrimPrefix(server.URL, "http://")
	setInsecure(t, f.Host)
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

func (f *FaultyRegistry) count(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Gets[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
	if r.Header.Get("Range") != "" {
		f.Ranges++
	}
}

func (f *FaultyRegistry) Fail(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.Fault.Store(&fault)
}

type CountingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *CountingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}
