package registry

import (
	"gitlab-sardine-executor/oci/internal/ocitest"
	"os"
	"testing"
)

// TestMain gives the tests a home of their own: containers/image looks for
// passwords and certificates there, and remembers where it is.
func TestMain(m *testing.M) { os.Exit(ocitest.AtHome(m)) }
