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

// A FaultyRegistry is a real registry in this process, over plain HTTP, that answers what
// the test's fault does not answer before.
type FaultyRegistry struct {
	Host string
	// Registry is the registry without faults, which a fault may call.
	Registry http.Handler

	fault atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]

	// Requests for blobs, whether or not a fault answers.
	mu     sync.Mutex
	Gets   map[string]int // by digest
	Ranges int            // for a part of a blob
	Sent   atomic.Int64   // bytes of blobs

	// What no fault answered: all requests, uploads that began, and requests for blobs.
	Requests, Uploads, Blobs atomic.Int64
}

// NewFaultyRegistry starts a registry, and names it insecure.
func NewFaultyRegistry(t *testing.T) *FaultyRegistry {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	f := &FaultyRegistry{Gets: map[string]int{}, Registry: registry.New(registry.Logger(quiet))}
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = quiet
	server.Start()
	t.Cleanup(server.Close)
	f.Host = strings.TrimPrefix(server.URL, "http://")
	TrustInsecure(t, f.Host)
	return f
}

// insecure are the hosts that TrustInsecure has named.
var insecure struct {
	sync.Mutex
	hosts []string
}

// TrustInsecure names hosts, besides those of other tests, as registries of plain HTTP: tests
// share an environment, and may be parallel. [AtHome] must have made the home.
func TrustInsecure(t *testing.T, hosts ...string) {
	t.Helper()
	insecure.Lock()
	defer insecure.Unlock()
	insecure.hosts = append(insecure.hosts, hosts...)
	var text strings.Builder
	for _, host := range insecure.hosts {
		fmt.Fprintf(&text, "[[registry]]\nlocation = %q\ninsecure = true\n", host)
	}
	// A file of its own: containers/image reads each once.
	conf := filepath.Join(home, fmt.Sprintf("registries-%d.conf", len(insecure.hosts)))
	if err := os.WriteFile(conf, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	os.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

// Fail sets what may answer requests before the registry, and reports whether it did. With
// nil there are no faults.
func (f *FaultyRegistry) Fail(fault func(w http.ResponseWriter, r *http.Request) bool) {
	if fault == nil {
		f.fault.Store(nil)
		return
	}
	f.fault.Store(&fault)
}

func (f *FaultyRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	isBlob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	if isBlob {
		f.count(r)
		w = &CountingWriter{w, &f.Sent}
	}
	if fault := f.fault.Load(); fault != nil && (*fault)(w, r) {
		return
	}
	f.Requests.Add(1)
	if r.Method == http.MethodPost {
		f.Uploads.Add(1)
	} else if isBlob {
		f.Blobs.Add(1)
	}
	f.Registry.ServeHTTP(w, r)
}

func (f *FaultyRegistry) count(r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Gets[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
	if r.Header.Get("Range") != "" {
		f.Ranges++
	}
}

// A CountingWriter counts what is sent of blobs.
type CountingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *CountingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}

// Unwrap is for [http.NewResponseController].
func (w *CountingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
