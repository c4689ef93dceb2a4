package store

import (
	"os"
	"testing"

	"gitlab-sardine-executor/oci/internal/ocitest"
)

// TestMain gives the tests a home of their own: containers/image looks for
// passwords and certificates there, and remembers where it is.
func TestMain(m *testing.M) { os.Exit(ocitest.AtHome(m)) }
