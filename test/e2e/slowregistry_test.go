//go:build boot

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"

	"gitlab-sardine-executor/internal/testbed"
)

// A slowRegistry stands before a registry and can stop a layer on its way.
type slowRegistry struct {
	// registry is what clients see: the address, and the settings that trust it.
	registry *testbed.Registry

	mu      sync.Mutex
	hold    *hold // nil: everything passes
	refuses bool
}

// A hold stops the first layer that comes, and all that follow.
type hold struct {
	// share is how much of the layer passes before: 0 for nothing, 0.5 for half.
	share    float64
	reached  chan struct{} // closed when the layer is stopped
	released chan struct{}
	reach    func() // closes reached, once
	Release  func() // lets everything pass
}

// layerMin is the size, in bytes, above which a blob is taken for a layer.
const layerMin = 1 << 20

var blobPath = regexp.MustCompile(`/blobs/sha256:[0-9a-f]{64}$`)

func startSlowRegistry(t testing.TB, behind *testbed.Registry) *slowRegistry {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "slow")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	host := listener.Addr().String()
	conf := filepath.Join(dir, "registries.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "[[registry]]\nlocation = %q\ninsecure = true\n", host), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &slowRegistry{registry: &testbed.Registry{Host: host, RegistriesConf: conf}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: behind.Host})
	proxy.FlushInterval = -1
	proxy.ModifyResponse = r.slow
	// Who talks to a dead registry gets no answer, rather than one from here.
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		refuses := r.refuses
		r.mu.Unlock()
		if refuses {
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, request)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return r
}

// Refuse closes every connection without an answer until the test's end.
func (r *slowRegistry) Refuse(t testing.TB) {
	set := func(refuses bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.refuses = refuses
	}
	set(true)
	t.Cleanup(func() { set(false) })
}

// Hold stops the next layer after that share of it has passed.
func (r *slowRegistry) Hold(share float64) *hold {
	h := &hold{share: share, reached: make(chan struct{}), released: make(chan struct{})}
	h.reach = sync.OnceFunc(func() { close(h.reached) })
	h.Release = sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hold = nil
		close(h.released)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = h
	return h
}

func (r *slowRegistry) slow(response *http.Response) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.hold; h != nil && response.ContentLength > layerMin && blobPath.MatchString(response.Request.URL.Path) {
		pass := int64(h.share * float64(response.ContentLength))
		response.Body = &heldBody{ReadCloser: response.Body, hold: h, pass: pass, gone: response.Request.Context().Done()}
	}
	return nil
}

// A heldBody is a layer that is stopped.
type heldBody struct {
	io.ReadCloser
	hold *hold
	pass int64           // bytes that may still pass
	gone <-chan struct{} // the client has given up
}

func (b *heldBody) Read(p []byte) (int, error) {
	if b.pass == 0 {
		b.hold.reach()
		select {
		case <-b.hold.released:
		case <-b.gone:
		}
		b.pass = 1 << 62
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.pass)])
	b.pass -= int64(n)
	return n, err
}
