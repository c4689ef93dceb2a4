package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/oci/transfer"
)

// A plainRegistry serves what a test puts into it, true or not. It checks nothing.
type plainRegistry struct {
	host string

	mu        sync.Mutex
	manifests map[string]servedManifest // by tag or digest, of every repository
	blobs     map[digest.Digest][]byte
	gets      int // requests for blobs
	// serve may answer a request for a blob in place of the registry.
	serve func(w http.ResponseWriter, r *http.Request, content []byte) bool
}

type servedManifest struct {
	contentType string
	raw         []byte
}

func newPlainRegistry(t *testing.T) *plainRegistry {
	t.Helper()
	p := &plainRegistry{manifests: map[string]servedManifest{}, blobs: map[digest.Digest][]byte{}}
	server := httptest.NewServer(p)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	p.host = strings.TrimPrefix(server.URL, "http://")
	return p
}

// setAllInsecure names registries as ones of plain HTTP, for this test.
func setAllInsecure(t *testing.T, registries ...*plainRegistry) {
	t.Helper()
	var text strings.Builder
	for _, p := range registries {
		fmt.Fprintf(&text, "[[registry]]\nlocation = %q\ninsecure = true\n", p.host)
	}
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_REGISTRIES_CONF", conf)
}

func (p *plainRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	dir, name, _ := cutLast(r.URL.Path)
	switch {
	case strings.HasSuffix(dir, "/manifests"):
		p.mu.Lock()
		m, ok := p.manifests[name]
		p.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", m.contentType)
		_, _ = w.Write(m.raw)
	case strings.HasSuffix(dir, "/blobs"):
		p.mu.Lock()
		content, ok := p.blobs[digest.Digest(name)]
		p.gets++
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

func cutLast(path string) (dir, name string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:], i >= 0
}

// serveBlobs sets how blobs are answered; nil means as they are.
func (p *plainRegistry) serveBlobs(serve func(w http.ResponseWriter, r *http.Request, content []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serve = serve
}

func (p *plainRegistry) blobGets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gets
}

func (p *plainRegistry) blob(mediaType string, content []byte) v1.Descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := digest.FromBytes(content)
	p.blobs[d] = content
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}
}

// put serves a manifest under its digest, and under tags.
func (p *plainRegistry) put(contentType, raw string, tags ...string) v1.Descriptor {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := digest.FromString(raw)
	for _, name := range append(tags, d.String()) {
		p.manifests[name] = servedManifest{contentType, []byte(raw)}
	}
	return v1.Descriptor{MediaType: contentType, Digest: d, Size: int64(len(raw))}
}

// quote is a descriptor as JSON; more follows its size.
func quote(d v1.Descriptor, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, d.MediaType, d.Digest, d.Size, more)
}

// tarFile is an archive with one file.
func tarFile(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o444, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// containerDisk puts a container image with a disk in it into registries, and returns its
// manifest.
func containerDisk(t *testing.T, content []byte, registries ...*plainRegistry) v1.Descriptor {
	t.Helper()
	var d v1.Descriptor
	for _, p := range registries {
		config := p.blob(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux"}`))
		layer := p.blob(v1.MediaTypeImageLayer, tarFile(t, "disk/x.img", content))
		d = p.put(v1.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":"`+v1.MediaTypeImageManifest+`","config":`+quote(config, "")+`,"layers":[`+quote(layer, "")+`]}`)
	}
	return d
}

// TestAmbiguousManifests: what could be two images is none, in whichever way it is served, and
// nothing of it is transferred.
func TestAmbiguousManifests(t *testing.T) {
	p := newPlainRegistry(t)
	setAllInsecure(t, p)
	disk := p.blob("application/vnd.qemu.qcow2", ocitest.Qcow2File(t))
	config := p.blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	child := containerDisk(t, []byte("other"), p)
	const manifest, index, docker = v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json"
	layers := `"config":` + quote(config, "") + `,"layers":[` + quote(disk, "") + `]`
	manifests := `"manifests":[` + quote(child, "") + `]`
	honest := `{"schemaVersion":2,` + layers + `}`
	in := func(descriptor string) string { return `{"schemaVersion":2,"manifests":[` + descriptor + `]}` }
	tests := map[string]struct {
		contentType, raw string
		want             error
		text             string
	}{
		"layers and manifests":                {manifest, `{"schemaVersion":2,` + layers + `,` + manifests + `}`, oci.ErrHostile, "two ways"},
		"layers and manifests, as an index":   {index, `{"schemaVersion":2,` + layers + `,` + manifests + `}`, oci.ErrHostile, "two ways"},
		"layers and manifests, named":         {manifest, `{"mediaType":"` + manifest + `",` + layers + `,` + manifests + `}`, oci.ErrHostile, "two ways"},
		"layers and no manifests at all":      {manifest, `{` + layers + `,"manifests":[]}`, oci.ErrHostile, "two ways"},
		"calls itself an index":               {manifest, `{"mediaType":"` + index + `",` + layers + `}`, oci.ErrHostile, "two ways"},
		"calls itself a manifest":             {index, `{"mediaType":"` + manifest + `",` + manifests + `}`, oci.ErrHostile, "two ways"},
		"served as an index":                  {index, honest, oci.ErrHostile, "two ways"},
		"served as Docker's index":            {docker + "; charset=utf-8", honest, oci.ErrHostile, "two ways"},
		"index served as a manifest":          {manifest, `{` + manifests + `}`, oci.ErrHostile, "two ways"},
		"of schema 1 too":                     {manifest, `{` + layers + `,"fsLayers":[]}`, oci.ErrHostile, "two ways"},
		"layers twice":                        {manifest, `{` + layers + `,"layers":[]}`, oci.ErrHostile, `"layers" occurs twice`},
		"layers twice, escaped":               {manifest, `{` + layers + `,"l\u0061yers":[]}`, oci.ErrHostile, `"layers" occurs twice`},
		"Layers":                              {manifest, `{` + layers + `,"Layers":[]}`, oci.ErrHostile, `"Layers"`},
		"Manifests beside layers":             {manifest, `{` + layers + `,"MANIFESTS":[` + quote(child, "") + `]}`, oci.ErrHostile, `"MANIFESTS"`},
		"with a long s":                       {manifest, `{` + layers + `,"layerſ":[]}`, oci.ErrHostile, "layerſ"},
		"digest twice":                        {manifest, `{"config":` + quote(config, "") + `,"layers":[` + quote(disk, `,"digest":"`+config.Digest.String()+`"`) + `]}`, oci.ErrHostile, `"digest" occurs twice`},
		"annotation twice":                    {manifest, `{"config":` + quote(config, "") + `,"layers":[` + quote(disk, `,"annotations":{"a":"b","a":"c"}`) + `]}`, oci.ErrHostile, `"a" occurs twice`},
		"platform in capitals":                {index, in(quote(child, `,"platform":{"os":"linux","architecture":"amd64","Architecture":"arm64"}`)), oci.ErrHostile, `"Architecture"`},
		"child that its index calls an index": {index, in(quote(v1.Descriptor{MediaType: index, Digest: child.Digest, Size: child.Size}, "")), oci.ErrHostile, "two ways"},
		"child of another size":               {index, in(quote(v1.Descriptor{MediaType: manifest, Digest: child.Digest, Size: child.Size + 1}, "")), oci.ErrHostile, "its index says"},
		"more after the end":                  {manifest, honest + `{}`, oci.ErrFormat, "not valid JSON"},
		"not UTF-8":                           {manifest, strings.Replace(honest, "{", "{\"x\":\"\xff\",", 1), oci.ErrFormat, "UTF-8"},
		"neither":                             {manifest, `{"schemaVersion":2}`, oci.ErrFormat, "neither"},
		"schema 1":                            {manifest, `{"schemaVersion":1,"fsLayers":[],"history":[]}`, oci.ErrFormat, ""},
		"without an end":                      {manifest, strings.Repeat(`{"a":`, 100_000), oci.ErrFormat, ""},
		"deep":                                {manifest, `{` + layers + `,"x":` + strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000) + `}`, oci.ErrFormat, "nests deeper"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := p.put(test.contentType, test.raw, "1")
			before := p.blobGets()
			for _, text := range []string{p.host + "/vms/x:1", p.host + "/vms/x@" + d.Digest.String()} {
				store := newStore(t)
				image, err := store.Pull(t.Context(), ocitest.MustParse(t, text), PullOptions{Architecture: "amd64"})
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
					t.Errorf("pull %s: got %+v, %v; want %v with %q", text, image, err, test.want, test.text)
				}
				ocitest.AssertEmpty(t, filepath.Join(store.Root(), imagesDir))
				if _, err := source.Inspect(t.Context(), ocitest.MustParse(t, text), source.InspectOptions{Architecture: "amd64"}); !errors.Is(err, test.want) {
					t.Errorf("inspect %s: %v, want %v", text, err, test.want)
				}
				if _, err := transfer.Fetch(t.Context(), ocitest.MustParse(t, text), ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout")), transfer.Options{}); !errors.Is(err, test.want) {
					t.Errorf("fetch %s: %v, want %v", text, err, test.want)
				}
			}
			if n := p.blobGets() - before; n > 0 {
				t.Errorf("%d blobs were asked for", n)
			}
		})
	}
}

// TestUnambiguousManifests: what real registries and tools do is no second meaning.
func TestUnambiguousManifests(t *testing.T) {
	p := newPlainRegistry(t)
	setAllInsecure(t, p)
	disk := p.blob("application/vnd.qemu.qcow2", ocitest.Qcow2File(t))
	config := p.blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	layers := `"config":` + quote(config, "") + `,"layers":[` + quote(disk, `,"Unknown":1,"annotations":{"Digest":"x","digest":"y"}`) + `]`
	child := p.put(v1.MediaTypeImageManifest, `{"schemaVersion":2,`+layers+`}`)
	tests := map[string]servedManifest{
		"no mediaType":            {v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,` + layers + `}`)},
		"manifests null":          {v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"manifests":null,` + layers + `}`)},
		"text/plain":              {"text/plain", []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `",` + layers + `}`)},
		"text/plain, no type":     {"text/plain; charset=utf-8", []byte(`{"schemaVersion":2,` + layers + `}`)},
		"application/json, index": {"application/json", []byte(`{"schemaVersion":2,"manifests":[` + quote(child, "") + `]}`)},
		"octet-stream, index":     {"application/octet-stream", []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[` + quote(child, "") + `]}`)},
		"child without a size":    {v1.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + child.Digest.String() + `"}]}`)},
		"other names":             {v1.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"x":{"Layers":1,"layers":2},` + layers + `}`)},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			p.put(m.contentType, string(m.raw), "1")
			ref := ocitest.MustParse(t, p.host+"/vms/x:1")
			if _, err := newStore(t).Pull(t.Context(), ref, PullOptions{}); err != nil {
				t.Error(err)
			}
			layout := ocitest.MustParse(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
			if _, err := transfer.Fetch(t.Context(), ref, layout, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			if _, err := newStore(t).Pull(t.Context(), ocitest.MustParse(t, layout.String()+":1"), PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDigestIsOneImage: whatever an index says of a manifest, and whoever pulls it first, the
// manifest is the same image.
func TestDigestIsOneImage(t *testing.T) {
	honest, evil := newPlainRegistry(t), newPlainRegistry(t)
	setAllInsecure(t, honest, evil)
	content := append([]byte("boot"), make([]byte, 70_000)...)
	m := containerDisk(t, content, honest, evil)
	tests := map[string]string{
		"disktype":             `,"annotations":{"disktype":"qemu"}`,
		"raw":                  `,"artifactType":"application/vnd.diskimage.raw"`,
		"iso":                  `,"artifactType":"application/vnd.diskimage.iso"`,
		"kubevirt":             `,"artifactType":"application/vnd.kubevirt.virtualmachine.v1"`,
		"title":                `,"annotations":{"org.opencontainers.image.title":"x.raw"}`,
		"platform":             `,"platform":{"os":"qemu","architecture":"amd64"}`,
		"several":              `,"artifactType":"application/vnd.diskimage.raw","annotations":{"disktype":"qemu"},"platform":{"os":"linux","architecture":"amd64"}`,
		"another architecture": ``,
	}
	for name, said := range tests {
		t.Run(name, func(t *testing.T) {
			evil.put(v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[`+quote(m, said)+`]}`, "1")
			viaIndex, direct := ocitest.MustParse(t, evil.host+"/evil/x:1"), ocitest.MustParse(t, honest.host+"/vms/x@"+m.Digest.String())
			for _, order := range [][]oci.Reference{{viaIndex, direct}, {direct, viaIndex}} {
				store := newStore(t)
				dirs := map[string]bool{}
				for _, ref := range order {
					for _, policy := range []oci.PullPolicy{oci.PullAlways, oci.PullIfNotPresent} {
						image, err := store.Pull(t.Context(), ref, PullOptions{Architecture: "amd64", Policies: []oci.PullPolicy{policy}})
						if err != nil {
							t.Fatalf("%s of %v: %v", ref, order, err)
						}
						if image.Format != "containerdisk" || image.Disks[0].Name != "x.img" {
							t.Errorf("%s of %v: %s %+v", ref, order, image.Format, image.Disks)
						}
						ocitest.CheckContent(t, image, content)
						dirs[image.Dir] = true
						image.Close()
					}
				}
				if len(dirs) != 1 {
					t.Errorf("%d directories for one image: %v", len(dirs), dirs)
				}
			}
		})
	}
}
