package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containers/image/v5/docker/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzAuthConfig: the author of a job writes DOCKER_AUTH_CONFIG.
func FuzzAuthConfig(f *testing.F) {
	f.Add(authFile("registry.example.com", "password"))
	f.Add(`{"auths":{"https://registry.example.com/v2/":{"username":"u","password":"p"}}}`)
	f.Add(`{"auths":{"registry.example.com":{"auth":"bm9jb2xvbg=="}}}`)
	f.Add(`{"auths":null,"credHelpers":{"registry.example.com":"x"}}`)
	named, err := reference.ParseNormalizedNamed("registry.example.com/vms/debian:12")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		auth, found, err := lookupAuthConfig(text, named)
		if err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%q: %v is no ErrDenied", text, err)
		}
		if (err != nil || !found) && (auth.Username != "" || auth.Password != "" || auth.IdentityToken != "") {
			t.Errorf("%q: %t, %v, and yet a password", text, found, err)
		}
	})
}

// FuzzLayoutIndex: a layout can be anybody's.
func FuzzLayoutIndex(f *testing.F) {
	sum := digest.FromString("x").String()
	f.Add([]byte(`{"manifests":[{"digest":"`+sum+`","size":1,"annotations":{"org.opencontainers.image.ref.name":"1"}}]}`), "1")
	f.Add([]byte(`{"manifests":[{"digest":"sha256:../../x"},{}]}`), "")
	f.Fuzz(func(t *testing.T, index []byte, tag string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, v1.ImageIndexFile), index, 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := openLayout(Reference{layout: dir, tag: tag})
		if err != nil {
			if !Final(err) {
				t.Errorf("%q: %v may pass", index, err)
			}
			return
		}
		defer src.Close()
		if _, _, err := src.Manifest(t.Context(), ""); !Final(err) {
			t.Errorf("%q: there is no manifest, but: %v", index, err)
		}
	})
}

// manifestSource has one manifest, whatever is asked for.
type manifestSource struct{ raw []byte }

func (s manifestSource) Manifest(context.Context, digest.Digest) ([]byte, string, error) {
	return s.raw, "", nil
}
func (manifestSource) Blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}
func (manifestSource) Close() error { return nil }

// FuzzImageTree: a registry's manifests and indexes are anybody's, too.
func FuzzImageTree(f *testing.F) {
	sum := digest.FromString("x").String()
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"` + sum + `"}]}`))
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"` + sum + `","size":1},"layers":[{"digest":"` + sum + `","size":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tree := &imageTree{seen: map[digest.Digest]bool{}, seenBlobs: map[digest.Digest]bool{}}
		if err := tree.walk(t.Context(), manifestSource{raw}, v1.Descriptor{}, 0); err != nil {
			if !Final(err) {
				t.Errorf("%q: %v may pass", raw, err)
			}
			return
		}
		for _, desc := range tree.blobs {
			if desc.Digest.Validate() != nil || desc.Size < 0 {
				t.Errorf("%q: blob %+v", raw, desc)
			}
		}
	})
}
