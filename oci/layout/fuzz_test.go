package layout

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"gitlab-sardine-executor/oci"
)

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
		ref, err := oci.ParseReference("oci:" + dir + ":" + tag)
		if tag == "" {
			ref, err = oci.ParseReference("oci:" + dir)
		}
		if err != nil || ref.LayoutDir() != dir {
			return // not a tag
		}
		src, err := Open(ref)
		if err != nil {
			if !oci.IsPermanent(err) {
				t.Errorf("%q: %v may pass", index, err)
			}
			return
		}
		defer src.Close()
		if _, _, err := src.Manifest(t.Context(), ""); !oci.IsPermanent(err) {
			t.Errorf("%q: there is no manifest, but: %v", index, err)
		}
	})
}
