package store

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/transfer"
)

// fastRetries does not make a test wait.
var fastRetries = registry.RetryPolicy{InitialDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, Timeout: 20 * time.Second, StallTimeout: 10 * time.Second}

// pushRaw puts an image with one raw disk into a registry, cut in pieces of a
// size if that is not 0.
func pushRaw(t *testing.T, host string, content []byte, piece int64) oci.Reference {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.raw"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	layout := ocitest.MustParse(t, "oci:"+filepath.Join(dir, "layout")+":1")
	o := export.Options{Disks: []export.Disk{{Path: filepath.Join(dir, "disk.raw"), Format: "raw"}}, ChunkSize: piece, Level: 1}
	if _, err := export.Export(t.Context(), layout, o); err != nil {
		t.Fatal(err)
	}
	ref := ocitest.MustParse(t, host+"/vms/raw:1")
	if _, err := transfer.Push(t.Context(), layout, ref, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	return ref
}

// TestPullThroughFaults: what may pass is tried again.
func TestPullThroughFaults(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	content := ocitest.Noise(5 << 20)
	ref := pushRaw(t, f.Host, content, 0)
	status := func(code, times int) func(http.ResponseWriter, *http.Request) bool {
		left := new(atomic.Int64)
		left.Store(int64(times))
		return func(w http.ResponseWriter, r *http.Request) bool {
			if left.Add(-1) < 0 {
				return false
			}
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
			return true
		}
	}
	tests := map[string]func(http.ResponseWriter, *http.Request) bool{
		"429": status(429, 8), "500": status(500, 3), "502": status(502, 3), "503": status(503, 3),
		"connection closed": func() func(http.ResponseWriter, *http.Request) bool {
			left := new(atomic.Int64)
			return func(http.ResponseWriter, *http.Request) bool {
				if left.Add(1) <= 3 {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}(),
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			f.Fail(fault)
			image, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, content)
		})
	}
}

// TestRetryAfter: a registry that says how long to wait is not asked before.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for what, matches := range map[string]func(*http.Request) bool{
		"manifest": func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") },
		"blob":     func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") },
	} {
		t.Run(what, func(t *testing.T) {
			f := ocitest.NewFaultyRegistry(t)
			content := ocitest.Noise(1 << 20)
			ref := pushRaw(t, f.Host, content, 0)
			var mu sync.Mutex
			refused := map[string]time.Time{}
			f.Fail(func(w http.ResponseWriter, r *http.Request) bool {
				if !matches(r) {
					return false
				}
				mu.Lock()
				defer mu.Unlock()
				at, was := refused[r.URL.Path]
				if was {
					if passed := time.Since(at); passed < 900*time.Millisecond {
						t.Errorf("%s asked again after %v", r.URL.Path, passed)
					}
					return false
				}
				refused[r.URL.Path] = time.Now()
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
			image, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: fastRetries})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, content)
			if len(refused) == 0 {
				t.Error("nothing was refused")
			}
		})
	}
}

// cutAfter ends each response to a request for a large blob after n bytes: by
// breaking the connection, or by saying nothing more.
func cutAfter(n int64, times int64, hang bool) func(http.ResponseWriter, *http.Request) bool {
	var cut atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) bool {
		counting, ok := w.(*ocitest.CountingWriter)
		if !ok || cut.Add(1) > times {
			return false
		}
		counting.ResponseWriter = &cutWriter{ResponseWriter: counting.ResponseWriter, left: n, hang: hang, ctx: r.Context()}
		return false
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int64
	hang bool
	ctx  context.Context
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) < c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	n, _ := c.ResponseWriter.Write(p[:c.left])
	c.left = 0
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	if c.hang {
		<-c.ctx.Done()
		return n, c.ctx.Err()
	}
	panic(http.ErrAbortHandler)
}

// TestPullGoesOn: a blob whose connection breaks again and again is taken up
// where it broke, and is transferred once in all.
func TestPullGoesOn(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]bool{"broken": false, "stalled": true} {
		t.Run(name, func(t *testing.T) {
			f := ocitest.NewFaultyRegistry(t)
			content := ocitest.Noise(5 << 20)
			ref := pushRaw(t, f.Host, content, 0)
			const each = 1 << 20
			f.Fail(cutAfter(each, 8, hang))
			before := f.Sent.Load()
			patient := fastRetries
			if hang {
				patient.StallTimeout = 300 * time.Millisecond
			}
			image, err := newStore(t).Pull(t.Context(), ref, PullOptions{retries: patient})
			if err != nil {
				t.Fatal(err)
			}
			ocitest.CheckContent(t, image, content)
			// What lies in buffers when a connection breaks is lost.
			if sent := f.Sent.Load() - before; sent > int64(len(content))*5/4 {
				t.Errorf("%d bytes transferred for a blob of about %d", sent, len(content))
			}
			if f.Ranges == 0 {
				t.Error("no request for a part of a blob: did containers/image change GetBlobAt?")
			}
		})
	}
}

// TestPullGivesUp: a registry that stays broken ends a pull in time, with an
// error that is not final.
func TestPullGivesUp(t *testing.T) {
	t.Parallel()
	f := ocitest.NewFaultyRegistry(t)
	ref := pushRaw(t, f.Host, ocitest.Noise(1<<20), 0)
	short := registry.RetryPolicy{InitialDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Timeout: 100 * time.Millisecond, StallTimeout: 100 * time.Millisecond}
	blobsOnly := func(fault func(w http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			fault(w)
			return true
		}
	}
	tests := map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		want  error // nil: not final
	}{
		"500":        {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }, nil},
		"500 blobs":  {blobsOnly(func(w http.ResponseWriter) { w.WriteHeader(500) }), nil},
		"cut at 0":   {blobsOnly(func(http.ResponseWriter) { panic(http.ErrAbortHandler) }), nil},
		"silent":     {cutAfter(0, 1<<30, true), nil},
		"401":        {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(401); return true }, oci.ErrDenied},
		"403 blobs":  {blobsOnly(func(w http.ResponseWriter) { w.WriteHeader(403) }), oci.ErrDenied},
		"404 blobs":  {blobsOnly(func(w http.ResponseWriter) { w.WriteHeader(404) }), oci.ErrNotFound},
		"empty blob": {blobsOnly(func(w http.ResponseWriter) { w.Header().Set("Content-Length", "0") }), oci.ErrInvalid},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f.Fail(test.fault)
			store := newStore(t)
			_, err := store.Pull(t.Context(), ref, PullOptions{retries: short})
			switch {
			case err == nil:
				t.Error("no error")
			case test.want == nil && oci.IsPermanent(err):
				t.Errorf("final: %v", err)
			case test.want != nil && !errors.Is(err, test.want):
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// shortRetries tries again at once and gives up soon.
var shortRetries = registry.RetryPolicy{InitialDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, Timeout: 250 * time.Millisecond, StallTimeout: time.Second}
