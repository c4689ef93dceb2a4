package transfer

import (
	"gitlab-sardine-executor/oci/internal/ocitest"
	"gitlab-sardine-executor/oci/store"
	"os"
	"path/filepath"
	"testing"
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
