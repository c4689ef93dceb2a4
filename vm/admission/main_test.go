package admission

import (
	"flag"
	"os"
	"testing"
)

// The tests mostly wait: more of them can do so at once than there are processors.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}
