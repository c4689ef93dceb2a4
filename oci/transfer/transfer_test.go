package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/export"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/layout"
	"gitlab-sardine-executor/oci/registry"
	"gitlab-sardine-executor/oci/store"
)

// Impatient tries again at once and gives up soon.
var Impatient = registry.RetryPolicy{InitialDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, Timeout: 250 * time.Millisecond, StallTimeout: time.Second}

// persistent tries again at once, for longer than a busy host takes for what must succeed.
var persistent = registry.RetryPolicy{InitialDelay: time.Millisecond, MaxDelay: 10 * time.Millisecond, Timeout: time.Minute, StallTimeout: 10 * time.Second}

// TestTransferStatus answers each request of one kind with an HTTP status, or the
// first few of them.
func TestTransferStatus(t *testing.T) {
	t.Parallel()
	// What is asked for in a fetch and in a push.
	requests := map[string]func(r *http.Request) bool{
		"ping":     func(r *http.Request) bool { return r.URL.Path == "/v2/" },
		"manifest": func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") },
		"blob": func(r *http.Request) bool {
			return strings.Contains(r.URL.Path, "/blobs/") && r.Method != http.MethodHead
		},
	}
	tests := []struct {
		status int
		body   string
		want   error // nil: may pass, and so is tried again
	}{
		{http.StatusUnauthorized, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, oci.ErrDenied},
		{http.StatusUnauthorized, "", oci.ErrDenied},
		{http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, oci.ErrDenied},
		{http.StatusForbidden, "<html>forbidden</html>", oci.ErrDenied},
		{http.StatusNotFound, `{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`, oci.ErrNotFound},
		{http.StatusNotFound, "not here", oci.ErrNotFound},
		{http.StatusTooManyRequests, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, nil},
		{http.StatusInternalServerError, "oops", nil},
		{http.StatusServiceUnavailable, "", nil},
	}
	for what, matches := range requests {
		for _, test := range tests {
			if what == "ping" && test.status == http.StatusUnauthorized {
				continue // that is how a registry asks for a password
			}
			t.Run(fmt.Sprintf("%s/%d %.5s", what, test.status, test.body), func(t *testing.T) {
				t.Parallel()
				testStatus(t, matches, test.status, test.body, test.want)
			})
		}
	}
}

func testStatus(t *testing.T, matches func(*http.Request) bool, status int, body string, want error) {
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/single:1")
	creds := registry.Credentials{Insecure: true}
	push := func(retries registry.RetryPolicy) error {
		_, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, Options{Credentials: creds, retries: retries})
		return err
	}
	fetch := func(retries registry.RetryPolicy) error {
		to := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		_, err := Fetch(t.Context(), ref, to, Options{Credentials: creds, retries: retries})
		return err
	}
	answer := func(times int64) func(http.ResponseWriter, *http.Request) bool {
		var n atomic.Int64
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !matches(r) || n.Add(1) > times {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(status)
			io.WriteString(w, body)
			return true
		}
	}
	// Push first, that there is something to fetch.
	for i, op := range []func(registry.RetryPolicy) error{push, fetch} {
		name := []string{"push", "fetch"}[i]
		m.Fail(answer(1 << 62))
		err := op(Impatient)
		switch {
		case want != nil && !errors.Is(err, want):
			t.Errorf("%s: got %v, want %v", name, err, want)
		case want == nil && (err == nil || oci.IsPermanent(err)):
			t.Errorf("%s: got %v, want an error that may pass", name, err)
		}
		if m.Fail(answer(2)); want != nil {
			m.Fail(nil)
		}
		if err := op(persistent); err != nil {
			t.Errorf("%s, once the registry has recovered: %v", name, err)
		}
	}
}

// TestTransferDropped hangs up in the midst of each blob, once.
func TestTransferDropped(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/chunked:1")
	var uploads atomic.Int64
	var fetched sync.Map
	m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Method == http.MethodPatch && uploads.Add(1) <= 3:
			io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
			if _, was := fetched.LoadOrStore(r.URL.Path, true); !was {
				m.Registry.ServeHTTP(&cutter{ResponseWriter: w, left: 200}, r)
				panic(http.ErrAbortHandler)
			}
		}
		return false
	})
	want := ocitest.ReadExpected(t, "chunked").Manifests[0].Manifest
	if d, err := Push(t.Context(), ocitest.FixtureRef(t, "chunked", "latest"), ref, Options{retries: persistent}); err != nil || d != want {
		t.Fatalf("push: %s, %v", d, err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if d, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), Options{retries: persistent}); err != nil || d != want {
		t.Fatalf("fetch: %s, %v", d, err)
	}
	checkLayout(t, layout, "1", want)
}

// A cutter loses what comes after so many bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.ResponseWriter.Write(p[:n]); err != nil {
		return 0, err
	}
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// TestPushTwice: what is there is not sent again.
func TestPushTwice(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	for _, tag := range []string{"1", "2"} {
		if _, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ocitest.MustParse(t, m.Host+"/vms/single:"+tag), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.Uploads.Load(); n != 4 { // domain, VM config, disk, config
		t.Errorf("%d uploads, want 4", n)
	}
}

// TestPushDigest: a reference by digest holds nothing else.
func TestPushDigest(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	d := ocitest.ReadExpected(t, "single").Manifests[0].Manifest
	for name, want := range map[digest.Digest]error{d: nil, digest.FromString(""): oci.ErrReference} {
		ref := ocitest.MustParse(t, m.Host+"/vms/single@"+name.String())
		if _, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, Options{}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

// TestTransferIndex copies an index in an index, with a container image, an
// attestation and a child that is named twice.
func TestTransferIndex(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	l := ocitest.NewLayout(t)
	put := func(v any, mediaType string) v1.Descriptor {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return l.Blob(mediaType, raw)
	}
	config := l.Blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	child := func(content string) v1.Descriptor {
		return put(v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config,
			Layers: []v1.Descriptor{l.Blob("application/vnd.qemu.qcow2", []byte(content)), l.Blob("text/plain", []byte("shared"))},
		}, v1.MediaTypeImageManifest)
	}
	disk, attestation := child("disk"), child("attestation")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	index := func(children ...v1.Descriptor) v1.Descriptor {
		return put(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children}, v1.MediaTypeImageIndex)
	}
	top := index(index(disk, attestation), disk)
	top.Annotations = map[string]string{v1.AnnotationRefName: "1"}
	raw, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{top}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "index.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}

	ref := ocitest.MustParse(t, m.Host+"/vms/index:1")
	if d, err := Push(t.Context(), ocitest.MustParse(t, "oci:"+l.Dir), ref, Options{}); err != nil || d != top.Digest {
		t.Fatalf("push: %s, %v", d, err)
	}
	if n := m.Uploads.Load(); n != 4 { // disk, attestation, shared, config
		t.Errorf("%d uploads, want 4", n)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if d, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), Options{}); err != nil || d != top.Digest {
		t.Fatalf("fetch: %s, %v", d, err)
	}
	if n := m.Blobs.Load(); n != 4 {
		t.Errorf("%d blobs fetched, want 4", n)
	}
	// Everything but index.json, whose order of fields is ours, is the same.
	if diff := cmp.Diff(ocitest.BlobNames(t, l.Dir), ocitest.BlobNames(t, layout)); diff != "" {
		t.Error(diff)
	}
}

// TestFetchMends fetches into a layout in which blobs are damaged or missing; the
// others are not asked for again.
func TestFetchMends(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/chunked:1")
	if _, err := Push(t.Context(), ocitest.FixtureRef(t, "chunked", "latest"), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	to := ocitest.MustParse(t, "oci:"+layout)
	fetch := func() digest.Digest {
		d, err := Fetch(t.Context(), ref, to, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := fetch()
	all := m.Blobs.Load()
	if fetch(); m.Blobs.Load() != all {
		t.Errorf("%d blobs fetched again", m.Blobs.Load()-all)
	}
	damage := 0
	for _, name := range ocitest.BlobNames(t, layout) {
		path := filepath.Join(layout, "blobs", "sha256", name)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(content) < 100<<10 { // a piece of the disk
			continue
		}
		content[len(content)/2] ^= 1
		if damage++; damage == 1 {
			err = os.Remove(path)
		} else if err = os.Chmod(path, 0o644); err == nil {
			err = os.WriteFile(path, content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		if damage == 3 {
			break
		}
	}
	if damage != 3 {
		t.Fatalf("only %d blobs are large enough", damage)
	}
	fetch()
	if n := m.Blobs.Load() - all; n != 3 {
		t.Errorf("%d blobs fetched to mend three", n)
	}
	checkLayout(t, layout, "1", d)
}

// TestFetchInterrupted: what was there stays, and a second try goes on.
func TestFetchInterrupted(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	first, second := ocitest.MustParse(t, m.Host+"/vms/a:1"), ocitest.MustParse(t, m.Host+"/vms/b:1")
	for ref, fixture := range map[oci.Reference]string{first: "single", second: "chunked"} {
		if _, err := Push(t.Context(), ocitest.FixtureRef(t, fixture, "latest"), ref, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	layout := filepath.Join(t.TempDir(), "layout")
	to := ocitest.MustParse(t, "oci:"+layout+":x")
	was, err := Fetch(t.Context(), first, to, Options{})
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var served atomic.Int64
	m.Fail(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && served.Add(1) == 6 {
			cancel()
		}
		return false
	})
	if _, err := Fetch(ctx, second, to, Options{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want that it was cancelled", err)
	}
	m.Fail(nil)
	checkLayout(t, layout, "x", was)
	kept := len(ocitest.BlobNames(t, layout))
	before := m.Blobs.Load()
	d, err := Fetch(t.Context(), second, to, Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, layout, "x", d)
	// The manifest is no blob to the registry.
	if n := int(m.Blobs.Load() - before); n != len(ocitest.BlobNames(t, layout))-kept-1 {
		t.Errorf("%d blobs fetched, but %d were missing", n, len(ocitest.BlobNames(t, layout))-kept-1)
	}
}

// TestFetchIndexJSON: entries with other tags stay, of those with ours one is
// left, which every tool finds.
func TestFetchIndexJSON(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/single:1")
	if _, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if err := os.CopyFS(layout, os.DirFS(filepath.Join("..", "testdata", "sardinecake", "multitag", "oci"))); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(layout, "index.json")
	var old v1.Index
	ocitest.ReadJSON(t, index, &old)
	old.Manifests = append(old.Manifests, old.Manifests[0]) // v1 v2 v1
	ocitest.WriteJSON(t, index, old)
	d, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout+":v1"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	checkLayout(t, layout, "v1", d)
	checkLayout(t, layout, "v2", old.Manifests[1].Digest)
	var now v1.Index
	if ocitest.ReadJSON(t, index, &now); len(now.Manifests) != 2 {
		t.Errorf("entries: %v", now.Manifests)
	}
}

// TestFetchRefuses finds a bad destination before it moves a byte.
func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/single:1")
	if _, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string]map[string]string{
		"index.json is damaged": {"index.json": "{"},
		"another version":       {"oci-layout": `{"imageLayoutVersion":"2.0.0"}`},
	} {
		t.Run(name, func(t *testing.T) {
			layout := t.TempDir()
			for file, text := range files {
				if err := os.WriteFile(filepath.Join(layout, file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), Options{}); !errors.Is(err, oci.ErrFormat) {
				t.Errorf("got %v, want ErrFormat", err)
			}
			for file, text := range files {
				if got, err := os.ReadFile(filepath.Join(layout, file)); err != nil || string(got) != text {
					t.Errorf("%s is now %q, %v", file, got, err)
				}
			}
		})
	}
	if n := m.Blobs.Load(); n != 0 {
		t.Errorf("%d blobs fetched", n)
	}
	missing := filepath.Join(t.TempDir(), "layout")
	if _, err := Fetch(t.Context(), ocitest.MustParse(t, m.Host+"/no/such:1"), ocitest.MustParse(t, "oci:"+missing), Options{}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("no such image: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left a layout: %v", err)
	}
}

// TestFetchGarbage: what a tag stood for before can be freed by umoci. (Not in a
// layout with an image of the Python tool, whose times it cannot read.)
func TestFetchGarbage(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	layout := filepath.Join(t.TempDir(), "layout")
	var d digest.Digest
	for _, size := range []int{1 << 20, 2 << 20} {
		disk := filepath.Join(t.TempDir(), "disk.raw")
		if err := os.WriteFile(disk, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		exported, ref := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "exported")), ocitest.MustParse(t, m.Host+"/vms/x:1")
		if _, err := export.Export(t.Context(), exported, export.Options{Disks: []export.Disk{{Path: disk}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := Push(t.Context(), exported, ref, Options{}); err != nil {
			t.Fatal(err)
		}
		var err error
		if d, err = Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+layout), Options{}); err != nil {
			t.Fatal(err)
		}
	}
	before := len(ocitest.BlobNames(t, layout))
	ocitest.Command(t, ".", "umoci", "gc", "--layout", layout)
	if after := len(ocitest.BlobNames(t, layout)); after >= before {
		t.Errorf("umoci gc freed none of %d blobs", before)
	}
	checkLayout(t, layout, "1", d)
}

// TestFetchDiskFull: where there is no room nothing is left, and it is said how
// much there should be.
func TestFetchDiskFull(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/twodisk:1")
	if _, err := Push(t.Context(), ocitest.FixtureRef(t, "twodisk", "latest"), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	small := ocitest.Mounted(t, "tmpfs", "size=512k")
	_, err := Fetch(t.Context(), ref, ocitest.MustParse(t, "oci:"+filepath.Join(small, "layout")), Options{retries: Impatient})
	if !errors.Is(err, syscall.ENOSPC) || oci.IsPermanent(err) || !strings.Contains(err.Error(), "1.004MiB needed") {
		t.Errorf("got %v, want that the disk is full", err)
	}
	ocitest.AssertEmpty(t, small)
}

// TestFetchAlone: of two that write to one layout, one waits.
func TestFetchAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dir")
	first, err := layout.OpenWriter(t.Context(), dir, "1", func() {})
	if err != nil {
		t.Fatal(err)
	}
	var second *layout.Writer
	waited := false
	second, err = layout.OpenWriter(t.Context(), dir, "2", func() {
		waited = true
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil || !waited {
		t.Fatalf("waited: %v, %v", waited, err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// TestTransferHostile: a registry that gives other bytes than it should.
func TestTransferHostile(t *testing.T) {
	t.Parallel()
	m := ocitest.NewFaultyRegistry(t)
	ref := ocitest.MustParse(t, m.Host+"/vms/single:1")
	if _, err := Push(t.Context(), ocitest.FixtureRef(t, "single", "latest"), ref, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"/manifests/", "/blobs/"} {
		m.Fail(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, what) {
				return false
			}
			recorder := httptest.NewRecorder()
			m.Registry.ServeHTTP(recorder, r)
			body := recorder.Body.Bytes()
			body[len(body)/2] ^= 1
			w.Header().Set("Content-Type", recorder.Header().Get("Content-Type"))
			w.Write(body)
			return true
		})
		layout := filepath.Join(t.TempDir(), "layout")
		pinned := ocitest.MustParse(t, ref.Repository()+"@"+ocitest.ReadExpected(t, "single").Manifests[0].Manifest.String())
		if _, err := Fetch(t.Context(), pinned, ocitest.MustParse(t, "oci:"+layout), Options{retries: Impatient}); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", what, err)
		}
		if _, err := os.Stat(filepath.Join(layout, "index.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left an index.json: %v", what, err)
		}
	}
}

func TestLayoutIn(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"debian:12":              "oci:/srv/docker.io/library/debian:12",
		"r.example:5000/a/b":     "oci:/srv/r.example_5000/a/b:latest",
		"r.example/a@" + testSum: "oci:/srv/r.example/a",
	} {
		if got, err := ocitest.MustParse(t, text).LayoutIn("/srv"); err != nil || got.String() != want {
			t.Errorf("%s: got %s, %v; want %s", text, got, err, want)
		}
	}
	if got, err := ocitest.MustParse(t, "oci:/x").LayoutIn("/srv"); !errors.Is(err, oci.ErrReference) {
		t.Errorf("a layout: %s, %v", got, err)
	}
}

var testSum = digest.FromString("x").String()

// checkLayout lets other tools read a layout, and checks all of it by pulling.
func checkLayout(t *testing.T, layout, tag string, want digest.Digest) {
	t.Helper()
	ocitest.CheckLayoutFiles(t, layout, tag, want)
	image, err := newStore(t).Pull(t.Context(), ocitest.MustParse(t, "oci:"+layout+":"+tag), store.PullOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
}
