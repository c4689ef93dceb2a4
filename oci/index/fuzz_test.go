package index

import (
	"errors"
	"fmt"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"gitlab-sardine-executor/oci"
	"gitlab-sardine-executor/oci/format"
)

// FuzzChoose chooses from any index.
func FuzzChoose(f *testing.F) {
	d := digest.FromString("")
	for _, text := range []string{
		`{"manifests":[]}`,
		`{"manifests":[{"digest":"%[1]s","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`,
		`{"manifests":[{"digest":"%[1]s","annotations":{"disktype":"wsl"}},{"digest":"%[1]s","platform":null,"artifactType":"application/vnd.diskimage.raw"}]}`,
		`{"manifests":[{"digest":"%[1]s","platform":{"os":"qemu","architecture":"aarch64"}}]}`,
	} {
		f.Add(fmt.Appendf(nil, text, d))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		doc, err := format.Parse(raw)
		if err != nil || doc.Index == nil {
			return
		}
		child, err := Choose(doc.Index, "amd64")
		if err != nil && !errors.Is(err, oci.ErrFormat) {
			t.Error(err)
		}
		if err == nil && child.Digest.Validate() != nil {
			t.Errorf("child %+v", child)
		}
		if text := Offered(doc.Index); len(text) > (maxOffered+1)*(maxDescription*utf8.UTFMax+2)+2 {
			t.Errorf("%d bytes: %s", len(text), text)
		}
	})
}
