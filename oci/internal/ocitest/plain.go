package ocitest

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A PlainRegistry serves what a test puts into it, true or not. It checks nothing.
type PlainRegistry struct {
	Host string

	mu        sync.Mutex
	manifests map[string]ServedManifest // by tag or digest, of every repository
	blobs     map[digest.Digest][]byte
	gets      map[digest.Digest]int // requests for blobs
	serve     func(w http.ResponseWriter, r *http.Request, content []byte) bool
}

// A ServedManifest is what a registry answers.
type ServedManifest struct {
	ContentType string
	Raw         []byte
}

// NewPlainRegistry starts a registry. Name it with [TrustInsecure].
func NewPlainRegistry(t *testing.T) *PlainRegistry {
	t.Helper()
	p := &PlainRegistry{manifests: map[string]ServedManifest{}, blobs: map[digest.Digest][]byte{}, gets: map[digest.Digest]int{}}
	server := httptest.NewServer(p)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	p.Host = strings.TrimPrefix(server.URL, "http://")
	return p
}

func (p *PlainRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i := strings.LastIndexByte(r.URL.Path, '/')
	dir, name := r.URL.Path[:max(i, 0)], r.URL.Path[i+1:]
	switch {
	case strings.HasSuffix(dir, "/manifests"):
		p.mu.Lock()
		m, ok := p.manifests[name]
		p.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", m.ContentType)
		_, _ = w.Write(m.Raw)
	case strings.HasSuffix(dir, "/blobs"):
		p.mu.Lock()
		content, ok := p.blobs[digest.Digest(name)]
		p.gets[digest.Digest(name)]++
		serve := p.serve
		p.mu.Unlock()
		switch {
		case !ok:
			http.NotFound(w, r)
		case serve == nil || !serve(w, r, content):
			_, _ = w.Write(content)
		}
	}
}

// ServeBlobs sets what answers requests for blobs in place of the registry, and says whether
// it did. nil means that the registry answers.
func (p *PlainRegistry) ServeBlobs(serve func(w http.ResponseWriter, r *http.Request, content []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve = serve
}

// Gets is the number of requests for a blob so far, and for all blobs without a digest.
func (p *PlainRegistry) Gets(of digest.Digest) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if of != "" {
		return p.gets[of]
	}
	sum := 0
	for _, n := range p.gets {
		sum += n
	}
	return sum
}

// Blob serves a blob.
func (p *PlainRegistry) Blob(mediaType string, content []byte) v1.Descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := digest.FromBytes(content)
	p.blobs[d] = content
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// Put serves a manifest under its digest, and under tags.
func (p *PlainRegistry) Put(contentType, raw string, tags ...string) v1.Descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := digest.FromString(raw)
	for _, name := range append(tags, d.String()) {
		p.manifests[name] = ServedManifest{contentType, []byte(raw)}
	}
	return v1.Descriptor{MediaType: contentType, Digest: d, Size: int64(len(raw))}
}

// Quote is a descriptor as JSON; more follows its size.
func Quote(d v1.Descriptor, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, d.MediaType, d.Digest, d.Size, more)
}

// ContainerDisk puts a container image with the disk x.img into registries, and returns its
// manifest and its layer.
func ContainerDisk(t *testing.T, content []byte, registries ...*PlainRegistry) (manifest, layer v1.Descriptor) {
	t.Helper()
	for _, p := range registries {
		config := p.Blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`))
		layer = p.Blob(v1.MediaTypeImageLayer, TarOf(t, TarEntry{Name: "disk/x.img", Content: string(content)}))
		manifest = p.Put(v1.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageManifest+`","config":`+Quote(config, "")+`,"layers":[`+Quote(layer, "")+`]}`, "1")
	}
	return manifest, layer
}
