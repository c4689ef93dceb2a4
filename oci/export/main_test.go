package export

import (
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/store"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestMain gives the tests a home of their own: containers/image looks for
// passwords and certificates there, and remembers where it is.
func TestMain(m *testing.M) { os.Exit(ocitest.AtHome(m)) }

func newStore(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

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
