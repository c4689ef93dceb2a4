package store

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/source"
	"gitlab-sardine-executor/oci/transfer"
)

// TestAmbiguousManifests: what could be two images is none, in whichever way it is served, and
// nothing of it is transferred.
func TestAmbiguousManifests(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	disk := p.Blob("application/vnd.qemu.qcow2", ocitest.Qcow2File(t))
	config := p.Blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	child, _ := ocitest.ContainerDisk(t, []byte("other"), p)
	const manifest, index, docker = v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json"
	layers := `"config":` + ocitest.Quote(config, "") + `,"layers":[` + ocitest.Quote(disk, "") + `]`
	manifests := `"manifests":[` + ocitest.Quote(child, "") + `]`
	honest := `{"schemaVersion":2,` + layers + `}`
	in := func(descriptor string) string { return `{"schemaVersion":2,"manifests":[` + descriptor + `]}` }
	tests := map[string]struct {
		contentType, raw string
		want             error
		text             string
	}{
		"layers and manifests":                {manifest, `{"schemaVersion":2,` + layers + `,` + manifests + `}`, oci.ErrInvalid, "two ways"},
		"layers and manifests, as an index":   {index, `{"schemaVersion":2,` + layers + `,` + manifests + `}`, oci.ErrInvalid, "two ways"},
		"layers and manifests, named":         {manifest, `{"mediaType":"` + manifest + `",` + layers + `,` + manifests + `}`, oci.ErrInvalid, "two ways"},
		"layers and no manifests at all":      {manifest, `{` + layers + `,"manifests":[]}`, oci.ErrInvalid, "two ways"},
		"calls itself an index":               {manifest, `{"mediaType":"` + index + `",` + layers + `}`, oci.ErrInvalid, "two ways"},
		"calls itself a manifest":             {index, `{"mediaType":"` + manifest + `",` + manifests + `}`, oci.ErrInvalid, "two ways"},
		"served as an index":                  {index, honest, oci.ErrInvalid, "two ways"},
		"served as Docker's index":            {docker + "; charset=utf-8", honest, oci.ErrInvalid, "two ways"},
		"index served as a manifest":          {manifest, `{` + manifests + `}`, oci.ErrInvalid, "two ways"},
		"of schema 1 too":                     {manifest, `{` + layers + `,"fsLayers":[]}`, oci.ErrInvalid, "two ways"},
		"layers twice":                        {manifest, `{` + layers + `,"layers":[]}`, oci.ErrInvalid, `"layers" occurs twice`},
		"layers twice, escaped":               {manifest, `{` + layers + `,"l\u0061yers":[]}`, oci.ErrInvalid, `"layers" occurs twice`},
		"Layers":                              {manifest, `{` + layers + `,"Layers":[]}`, oci.ErrInvalid, `"Layers"`},
		"Manifests beside layers":             {manifest, `{` + layers + `,"MANIFESTS":[` + ocitest.Quote(child, "") + `]}`, oci.ErrInvalid, `"MANIFESTS"`},
		"with a long s":                       {manifest, `{` + layers + `,"layerſ":[]}`, oci.ErrInvalid, "layerſ"},
		"digest twice":                        {manifest, `{"config":` + ocitest.Quote(config, "") + `,"layers":[` + ocitest.Quote(disk, `,"digest":"`+config.Digest.String()+`"`) + `]}`, oci.ErrInvalid, `"digest" occurs twice`},
		"annotation twice":                    {manifest, `{"config":` + ocitest.Quote(config, "") + `,"layers":[` + ocitest.Quote(disk, `,"annotations":{"a":"b","a":"c"}`) + `]}`, oci.ErrInvalid, `"a" occurs twice`},
		"platform in capitals":                {index, in(ocitest.Quote(child, `,"platform":{"os":"linux","architecture":"amd64","Architecture":"arm64"}`)), oci.ErrInvalid, `"Architecture"`},
		"child that its index calls an index": {index, in(ocitest.Quote(v1.Descriptor{MediaType: index, Digest: child.Digest, Size: child.Size}, "")), oci.ErrInvalid, "two ways"},
		"child of another size":               {index, in(ocitest.Quote(v1.Descriptor{MediaType: manifest, Digest: child.Digest, Size: child.Size + 1}, "")), oci.ErrInvalid, "its index says"},
		"more after the end":                  {manifest, honest + `{}`, oci.ErrFormat, "not valid JSON"},
		"not UTF-8":                           {manifest, strings.Replace(honest, "{", "{\"x\":\"\xff\",", 1), oci.ErrFormat, "UTF-8"},
		"neither":                             {manifest, `{"schemaVersion":2}`, oci.ErrFormat, "neither"},
		"schema 1":                            {manifest, `{"schemaVersion":1,"fsLayers":[],"history":[]}`, oci.ErrFormat, ""},
		"without an end":                      {manifest, strings.Repeat(`{"a":`, 100_000), oci.ErrFormat, ""},
		"deep":                                {manifest, `{` + layers + `,"x":` + strings.Repeat(`[`, 5000) + strings.Repeat(`]`, 5000) + `}`, oci.ErrFormat, "nested deeper"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := p.Put(test.contentType, test.raw, "1")
			before := p.Gets("")
			for _, text := range []string{p.Host + "/vms/x:1", p.Host + "/vms/x@" + d.Digest.String()} {
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
			if n := p.Gets("") - before; n > 0 {
				t.Errorf("%d blobs were asked for", n)
			}
		})
	}
}

// TestUnambiguousManifests: what real registries and tools do is no second meaning.
func TestUnambiguousManifests(t *testing.T) {
	t.Parallel()
	p := ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, p.Host)
	disk := p.Blob("application/vnd.qemu.qcow2", ocitest.Qcow2File(t))
	config := p.Blob(v1.MediaTypeEmptyJSON, []byte("{}"))
	layers := `"config":` + ocitest.Quote(config, "") + `,"layers":[` + ocitest.Quote(disk, `,"Unknown":1,"annotations":{"Digest":"x","digest":"y"}`) + `]`
	child := p.Put(v1.MediaTypeImageManifest, `{"schemaVersion":2,`+layers+`}`)
	type served struct{ contentType, raw string }
	tests := map[string]served{
		"no mediaType":            {v1.MediaTypeImageManifest, `{"schemaVersion":2,` + layers + `}`},
		"manifests null":          {v1.MediaTypeImageManifest, `{"schemaVersion":2,"manifests":null,` + layers + `}`},
		"text/plain":              {"text/plain", `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `",` + layers + `}`},
		"text/plain, no type":     {"text/plain; charset=utf-8", `{"schemaVersion":2,` + layers + `}`},
		"application/json, index": {"application/json", `{"schemaVersion":2,"manifests":[` + ocitest.Quote(child, "") + `]}`},
		"octet-stream, index":     {"application/octet-stream", `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageIndex + `","manifests":[` + ocitest.Quote(child, "") + `]}`},
		"child without a size":    {v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[{"digest":"` + child.Digest.String() + `"}]}`},
		"other names":             {v1.MediaTypeImageManifest, `{"schemaVersion":2,"x":{"Layers":1,"layers":2},` + layers + `}`},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			p.Put(m.contentType, m.raw, "1")
			ref := ocitest.MustParse(t, p.Host+"/vms/x:1")
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
	t.Parallel()
	honest, evil := ocitest.NewPlainRegistry(t), ocitest.NewPlainRegistry(t)
	ocitest.TrustInsecure(t, honest.Host, evil.Host)
	content := append([]byte("boot"), make([]byte, 70_000)...)
	m, _ := ocitest.ContainerDisk(t, content, honest, evil)
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
			evil.Put(v1.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[`+ocitest.Quote(m, said)+`]}`, "1")
			viaIndex, direct := ocitest.MustParse(t, evil.Host+"/evil/x:1"), ocitest.MustParse(t, honest.Host+"/vms/x@"+m.Digest.String())
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
